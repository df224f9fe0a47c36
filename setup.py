"""Installs jaxrl_llm. requirements.txt pins the versions that were tested."""

import pathlib
import re

import setuptools

_VERSION = re.search(
    r"__version__ = '(.+)'", pathlib.Path('jaxrl_llm/__init__.py').read_text()
).group(1)

setuptools.setup(
    name='jaxrl_llm',
    version=_VERSION,
    description='RL post-training of language models in JAX: one file per paper.',
    long_description=pathlib.Path('README.md').read_text(),
    long_description_content_type='text/markdown',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['jaxrl_llm*']),
    install_requires=[
        'jax>=0.10,<0.12',
        'flax>=0.12',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12',
        'chex>=0.1.92',
        'absl-py>=2.1',
        'ml_collections>=1.1',
        'numpy>=2.0',
        'scipy>=1.13',
        'tensorflow-datasets>=4.9.10',
        'array_record>=0.8',
        'importlib_resources>=6',
        'sentencepiece>=0.2.2',
        'tokenizers>=0.22',
        'safetensors>=0.6',
        'jinja2>=3.1.6',
        'sympy>=1.13,<1.15',
        'tensorboardX>=2.6.4',
        'matplotlib>=3.9',
        'tqdm>=4.66',
    ],
    extras_require={
        'test': ['pytest>=8', 'pytest-xdist>=3.6', 'hypothesis>=6.100', 'ruff>=0.15',
                 'nbformat>=5.10', 'nbclient>=0.10', 'ipykernel>=6.29', 'wandb>=0.21',
                 'gguf>=0.19'],
        'parity': ['torch==2.13.0', 'transformers==5.23.0', 'peft==0.21.2'],
        'tpu': ['jax[tpu]>=0.10,<0.12'],
        'gpu': ['jax[cuda13]>=0.10,<0.12'],
        'colab': ['jupyterlab>=4'],
        'wandb': ['wandb>=0.21'],
        'gguf': ['gguf>=0.19'],
    },
)
