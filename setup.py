"""Takes conf/ and sweeps/ into a wheel, as winnow/conf and winnow/sweeps; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfiguration(build_py):
    """The package, and the configuration that lies beside it in a checkout."""

    def run(self) -> None:
        """Build, and copy; an editable install reads the checkout's own."""
        super().run()
        if not self.editable_mode:
            for name in ("conf", "sweeps"):
                shutil.copytree(Path(__file__).parent / name, Path(self.build_lib, "winnow", name), dirs_exist_ok=True)


setup(cmdclass={"build_py": WithConfiguration})
