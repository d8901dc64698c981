"""A Python 3.6 of this machine, for what has to be seen by one."""
import glob
import os
import shutil
import subprocess


def old_python():
    """A Python 3.6 that can install packages, or None."""
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    for python in [shutil.which("python3.6"), *glob.glob(f"{pyenv}/versions/3.6*/bin/python")]:
        if python and not subprocess.run([python, "-c", "import pip, setuptools, sys; assert sys.version_info[1] == 6"],
                                         capture_output=True).returncode:
            return python
    return None
