"""What is installed in an environment."""

import subprocess


def versions_of(python: str, packages: tuple[str, ...]) -> str:
    """As another environment's packages say."""
    code = "import sys; from importlib.metadata import version; print(*[f'{n} {version(n)}' for n in sys.argv[1:]], sep=', ')"
    done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip()[-200:]
