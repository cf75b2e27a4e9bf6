"""What models see of the environment: what libraries need, and what the operator allows. Nobody's keys."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping

USUAL = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "TEMP", "TMP",
    "LD_LIBRARY_PATH", "PYTHON*", "VIRTUAL_ENV", "COVERAGE_*", "GLIBC_TUNABLES", "MALLOC_*", "SSL_CERT_*",
    "XDG_CACHE_HOME", "XDG_RUNTIME_DIR",
    # Threads, devices and caches of numerical libraries
    "BLIS_*", "CUBLAS_*", "CUDA_*", "CUDNN_*", "GOMP_*", "GOTO_*", "HF_HOME", "HF_HUB_OFFLINE", "HIP_*",
    "KMP_*", "MKL_*", "NUMBA_*", "NUMEXPR_*", "NVIDIA_*", "OMP_*", "OPENBLAS_*", "ORT_*", "PYTORCH_*",
    "ROCR_*", "TF_*", "TOKENIZERS_PARALLELISM", "TORCH_*", "TRANSFORMERS_OFFLINE", "VECLIB_*", "XLA_*",
)  # fmt: skip
# Before it is imported: afterwards it has opened a file in the home directory, which all workers would share.
QUIET = {"ORT_DISABLE_TELEMETRY": "1"}


def for_models(environment: Mapping[str, str], more: tuple[str, ...]) -> dict[str, str]:
    """Of `environment` what is usual or matches one of the patterns `more`."""
    allowed = re.compile("|".join(fnmatch.translate(pattern) for pattern in (*USUAL, *more)))
    return QUIET | {name: value for name, value in environment.items() if allowed.match(name)}
