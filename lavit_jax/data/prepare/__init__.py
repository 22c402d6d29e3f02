"""`lavit data prepare`: any source as array_record shards with an index, exactly once."""
