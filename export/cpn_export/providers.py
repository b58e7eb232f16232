"""onnxruntime's execution providers: a session on the one that was asked for, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from cpn_export.model_file import check_model_file
from cpn_fast.files.errors import DataError

if TYPE_CHECKING:
    import onnxruntime

Provider = Literal["auto", "cpu", "cuda", "tensorrt", "openvino", "coreml", "directml"]

PROVIDERS: dict[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "openvino": ("OpenVINOExecutionProvider", "CPUExecutionProvider"),
    "coreml": ("CoreMLExecutionProvider", "CPUExecutionProvider"),
    "directml": ("DmlExecutionProvider", "CPUExecutionProvider"),
}
"""What onnxruntime tries in order; the first must be in use, the others take operators that it lacks."""

AUTO = ("cuda", "coreml", "directml", "openvino", "cpu")
"""What "auto" tries, in order. Not TensorRT: it builds an engine, for minutes, for each size of an image."""

BOUND = {"cuda": "cuda", "tensorrt": "cuda"}
"""Providers with a memory of their own that Python can put arrays into, and onnxruntime's name of that memory."""

COMES_WITH = {
    "cuda": "cpn-fast[gpu]",
    "tensorrt": "cpn-fast[gpu]",
    "openvino": "onnxruntime-openvino",
    "coreml": "cpn-fast[cpu] on a Mac",
    "directml": "onnxruntime-directml on Windows",
}
"""What to install in the place of an onnxruntime that lacks a provider."""


@dataclass(frozen=True)
class Opened:
    """A session and where it runs.

    Attributes:
        session: ready to run.
        provider: the one in use, a key of `PROVIDERS`.
        passed_over: of "auto", what is there and could not be used, with the reasons.
    """

    session: onnxruntime.InferenceSession
    provider: str
    passed_over: tuple[str, ...] = ()

    @property
    def memory(self) -> str | None:
        """Device whose memory its inputs and outputs are bound to; None = the host's."""
        return BOUND.get(self.provider)

    def __str__(self) -> str:
        """The provider as onnxruntime says that it runs."""
        return f"{self.provider} ({self.session.get_providers()[0]})"


def available() -> list[str]:
    """The keys of `PROVIDERS` that the installed onnxruntime was built with; whether one starts is seen in use."""
    built = installed_onnxruntime().get_available_providers()
    return [name for name, chain in PROVIDERS.items() if chain[0] in built]


def open_session(path: Path, provider: Provider, threads: int) -> Opened:
    """A session on the provider asked for; of "auto" the first that starts.

    Args:
        path: the `.onnx` file.
        provider: where to run.
        threads: CPU threads of one inference; 0 = every core.

    Raises:
        DataError: for a provider that is not there or does not start (never a silent fall back to the CPU), or a file
            that is no ONNX model.
    """
    if provider != "auto":
        return Opened(_open(path, provider, threads), provider)
    there = available()
    reasons: list[str] = []
    for name in AUTO:
        if name in there:
            try:
                return Opened(_open(path, name, threads), name, tuple(reasons))
            except ProviderError as error:
                reasons.append(str(error))
    raise DataError("; ".join(reasons) or "this onnxruntime has no provider that is known; install cpn-fast[cpu]")


def run_bound(
    session: onnxruntime.InferenceSession, names: Sequence[str], feeds: Mapping[str, NDArray[Any]], memory: str | None
) -> list[NDArray[Any]]:
    """Run a session once, its inputs and outputs bound to a device's memory where it has one.

    The inputs are copied there in one piece each and the outputs stay there until all are done, so that the provider
    neither allocates nor copies in between; the host waits once, as it fetches them.

    Args:
        session: ready to run.
        names: of the outputs.
        feeds: inputs by name, contiguous.
        memory: device, such as "cuda" or "cpu"; None = leave it to onnxruntime.

    Returns:
        The outputs, on the host.
    """
    if memory is None:
        found: list[NDArray[Any]] = session.run(list(names), dict(feeds))
        return found
    value = installed_onnxruntime().OrtValue
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, value.ortvalue_from_numpy(array, memory, 0))
    for name in names:
        binding.bind_output(name, memory, 0)  # of a size that onnxruntime finds as it runs
    binding.synchronize_inputs()
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    return [output.numpy() for output in binding.get_outputs()]


class ProviderError(DataError):
    """A provider that is not there, or does not start with this model on this machine."""


def installed_onnxruntime() -> Any:
    """The package `onnxruntime`, whichever distribution brought it."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise DataError(
            "running a model needs onnxruntime, which is not installed: pip install 'cpn-fast[cpu]', or "
            "'cpn-fast[gpu]' on a machine with an NVIDIA GPU (one of them, not both)"
        ) from error
    return onnxruntime


def _is_no_model(error: Exception) -> bool:
    """Whether onnxruntime could not even read the graph; it names its exceptions by what happened."""
    return type(error).__name__ in ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoModel")


def _open(path: Path, provider: str, threads: int) -> onnxruntime.InferenceSession:
    onnxruntime = installed_onnxruntime()
    wanted = PROVIDERS[provider][0]
    built = onnxruntime.get_available_providers()
    if wanted not in built:
        install = f"install {COMES_WITH[provider]} in its place, or " if provider in COMES_WITH else ""
        raise ProviderError(
            f"--provider {provider}: this onnxruntime has no {wanted} (it has {', '.join(built)}); {install}use "
            "--provider cpu"
        )
    if provider in ("cuda", "tensorrt"):
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Shapes change from batch to batch: a remembered memory plan per shape would only cost memory. DirectML forbids it.
    options.enable_mem_pattern = False
    check_model_file(path)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(PROVIDERS[provider]))
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if _is_no_model(error):
            raise DataError(
                f"{path}: damaged, or no ONNX model ({reason}); copy it again, or export the run again "
                "with `cpn export`"
            ) from error
        raise ProviderError(f"{path}: onnxruntime cannot open it with --provider {provider}: {reason}") from error
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"--provider {provider}: onnxruntime could not start {wanted} on this machine ({_lacking(provider)}) and "
            f"would run on {session.get_providers()[0]}; use --provider cpu"
        )
    return session


def _lacking(provider: str) -> str:
    if provider in ("cuda", "tensorrt"):
        return "no GPU, or its CUDA, cuDNN or TensorRT libraries are missing"
    return "no hardware that it takes, or its libraries are missing"
