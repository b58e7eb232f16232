"""The native library: built with and without a compiler, its C++ tests, and what is said where it is missing."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cpn_kernels import native_library


def call(*command: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def python(code: str, **variables: str) -> str:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | variables
    return call(sys.executable, "-c", code, env=env)


needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("clang++") is None, reason="no C++ compiler is installed"
)


@pytest.fixture(scope="module")
def build(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU half and the C++ tests, built by CMake."""
    folder = tmp_path_factory.mktemp("native")
    options = ("-DCMAKE_BUILD_TYPE=Release", "-DCPN_CUDA=OFF", "-DCPN_BUILD_TESTS=ON")
    log = call("cmake", "-S", repository, "-B", folder, *options)
    assert "building the CPU half alone" in log
    assert "warning:" not in call("cmake", "--build", folder)
    return folder


@needs_cmake
@needs_compiler
@pytest.mark.slow
def test_the_passes_of_the_gpu_give_the_labels_of_the_cpu(build: Path) -> None:
    assert "cases" in call(build / "cpn_native_tests")


@needs_cmake
@needs_compiler
@pytest.mark.slow
def test_another_build_can_be_named(build: Path) -> None:
    code = "from cpn_kernels import native_library as n; print(n.available(), n.has_cuda(), n.load()[0]._name)"
    found = python(code, **{native_library.VARIABLE: str(build / native_library.NAME)})
    assert found.split()[:2] == ["True", "False"] and str(build) in found


@needs_cmake
def test_without_a_compiler_the_build_says_so_and_goes_on(repository: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("cmake", "make", "ninja", "uname", "sh"):
        if (found := shutil.which(name)) is not None:
            (tools / name).symlink_to(found)
    env = {"PATH": str(tools)}
    log = call("cmake", "-S", repository, "-B", tmp_path / "build", env=env)
    assert "no C++ compiler found" in log and "Install a C++17 compiler" in log
    call("cmake", "--build", tmp_path / "build", env=env)
    call("cmake", "--install", tmp_path / "build", "--prefix", tmp_path / "installed", env=env)
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.slow
def test_without_the_library_the_references_serve(tmp_path: Path) -> None:
    code = """
import torch
from cpn_kernels import native_library
from cpn_kernels.ops.cp_triplet import cp_triplet
from cpn_kernels.ops.dense_crf import dense_crf
from cpn_kernels.ops.superpixels import resolve_backend, superpixels
assert not native_library.available() and not native_library.has_cuda()
assert resolve_backend("auto") == "skimage"
image = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
cp_triplet(image, torch.zeros(1, 16, 16, dtype=torch.int32), torch.zeros(1, dtype=torch.int64), 0.5)
dense_crf(image, torch.full((1, 2, 16, 16), 0.5), 1)
try:
    superpixels(image, 4, backend="native")
except ImportError as error:
    print(error)
"""
    as_make_calls_it = "\nimport runpy; runpy.run_module('cpn_kernels.native_library', run_name='__main__')"
    said = python(code + as_make_calls_it, CPN_NATIVE_LIBRARY="none")
    assert "the native operators are not available: CPN_NATIVE_LIBRARY is none" in said
    assert "the native library is missing: CPN_NATIVE_LIBRARY is none" in said and "15 times" in said
    broken = tmp_path / "broken.so"
    broken.write_text("not a library")
    said = python(code, CPN_NATIVE_LIBRARY=str(broken))
    assert "broken.so cannot be loaded" in said and "the reference operators are used" in said


def test_a_library_of_another_interface_is_refused(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    source, library = tmp_path / "old.cpp", tmp_path / "old.so"
    source.write_text('extern "C" int cpn_native_abi() { return -3; }')
    call(compiler, "-shared", "-fPIC", source, "-o", library)
    said = python(
        "import sys; from cpn_kernels import native_library as n; print(n.available(), n.load()[1])\n"
        "print('compiler loaded:', 'torch._dynamo' in sys.modules)",
        CPN_NATIVE_LIBRARY=str(library),
    )
    assert "False" in said and "has interface -3" in said
    assert "compiler loaded: False" in said, "it takes as long as the rest of torch"


def declared(repository: Path) -> dict[str, str]:
    """Name -> declaration, without white space, of every function that the sources export."""
    found = {}
    for source in sorted((repository / "kernels" / "csrc").glob("*.c*")):
        for text in re.findall(r"^CPN_API ([^{]*?\))\s*\{", source.read_text(), re.MULTILINE | re.DOTALL):
            found[text.partition("(")[0].split()[-1]] = " ".join(text.split())
    return found


def test_the_list_of_functions_is_that_of_the_sources(repository: Path) -> None:
    listed = {*native_library.FUNCTIONS, *native_library.CUDA_FUNCTIONS, "cpn_native_abi"}
    assert declared(repository).keys() == listed


def test_other_arguments_mean_another_interface(repository: Path) -> None:
    """Where this fails: raise `ABI` and csrc's `cpn_native_abi`, then put the new digest here."""
    text = "\n".join(sorted(declared(repository).values()))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert (native_library.ABI, digest) == (4, "c2ec5423d0e1a5c2")
    assert (
        f"cpn_native_abi() {{ return {native_library.ABI}; }}"
        in (repository / "kernels" / "csrc" / "cpn_native.cpp").read_text()
    )


def test_a_library_that_lacks_a_function_is_refused(tmp_path: Path) -> None:
    """An earlier build of the same interface, as a checkout that was updated but not installed again has it."""
    compiler = shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    source, library = tmp_path / "old.cpp", tmp_path / "old.so"
    there = [name for name in native_library.FUNCTIONS if not name.startswith("cpn_jittered_crop_cpu")]
    lines = [f'extern "C" int cpn_native_abi() {{ return {native_library.ABI}; }}']
    source.write_text("\n".join(lines + [f'extern "C" int {name}() {{ return 0; }}' for name in there]))
    call(compiler, "-shared", "-fPIC", source, "-o", library)
    said = python(
        "from cpn_kernels import native_library as n; print(n.available(), n.has_cuda(), n.load()[1])",
        CPN_NATIVE_LIBRARY=str(library),
    )
    assert "False False" in said and "the reference operators are used" in said
    assert "earlier version: it has no cpn_jittered_crop_cpu, cpn_jittered_crop_cpu_workspace; build it again" in said


def test_errors_of_the_c_interface_are_named() -> None:
    native_library.check(0, "op")
    with pytest.raises(RuntimeError, match="op: an argument is out of range"):
        native_library.check(1, "op")
    with pytest.raises(RuntimeError, match="op: CUDA error 700"):
        native_library.check(1700, "op")


def test_workspace_is_aligned() -> None:
    for size in (0, 1, 1000):
        memory, address = native_library.workspace(size, torch.device("cpu"))
        assert address % 64 == 0
        assert memory.data_ptr() <= address and address + size <= memory.data_ptr() + memory.numel()
