"""Lets the environments of tox.ini that name one `env_dir` share it: what they need is installed once.

tox makes a folder anew where the last environment that used it has another name. These install the same packages, so
the new name is written down first.
"""

from tox.plugin import impl
from tox.tox_env.api import ToxEnv
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister


class SharedEnvRunner(VirtualEnvRunner):
    """A virtual environment that environments of several names use one after the other."""

    @staticmethod
    def id() -> str:
        """Its name as a `runner` in tox.ini."""
        return "shared"

    def _setup_env(self) -> None:
        with self.cache.compare({"name": self.conf.name, "type": type(self).__name__}, ToxEnv.__name__):
            pass
        super()._setup_env()


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    """Called by tox."""
    register.add_run_env(SharedEnvRunner)
