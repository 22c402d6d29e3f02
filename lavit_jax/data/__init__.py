"""Sources, preprocessing, sequence layout, packing and iterators."""
