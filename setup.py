"""Runs CMake with Ninja; everything else about the build is in CMakeLists.txt and pyproject.toml."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Builds every native module in one CMake run and puts what came of it into the package."""

    def run(self) -> None:
        build = Path(self.build_temp).resolve()
        out = build / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        self._configure(build, out)
        jobs = os.environ.get("MAX_JOBS")
        subprocess.run(["cmake", "--build", build, *(["--parallel", jobs] if jobs else [])], check=True)
        package = SOURCE / "fastssl" if self.inplace else Path(self.build_lib).resolve() / "fastssl"
        runpy.run_path(str(SOURCE / "fastssl" / "_build.py"))["keep"](out, package, SOURCE)

    def _configure(self, build: Path, out: Path) -> None:
        import pybind11

        command = [
            *("cmake", "--fresh", "-S", SOURCE, "-B", build, "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DFASTSSL_OUT={out}",
            f"-DFASTSSL_CUDA={os.environ.get('FASTSSL_CUDA', 'auto')}",
        ]
        done = subprocess.run(command)
        if done.returncode != 0:
            reason = out / "error.txt"
            sys.exit(f"fastssl: {reason.read_text() if reason.exists() else 'CMake failed; its words are above'}")

    def get_outputs(self) -> list[str]:
        return []


setup(ext_modules=[Extension("fastssl._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
