"""XLA flags under which programs compile in a fraction of the time.

Most tests compile a small program and run it once: its machine code is not worth optimising (fused
loops as MLIR take half of the time of compiling) or dividing among several runs of LLVM.
"""

FAST_COMPILE = (
    '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false '
    '--xla_cpu_parallel_codegen_split_count=1'
)
EIGHT_DEVICES = '--xla_force_host_platform_device_count=8'


def add(flags: str, given: str) -> str:
  """`given` with those of `flags` that it does not set itself."""
  return ' '.join([*given.split(), *(f for f in flags.split() if f.split('=')[0] not in given)])
