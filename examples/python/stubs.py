"""Python code for devp2p.v1, made from the repository's .proto files the first time it is needed.

It goes to `generated/` (not committed) and is made again when a .proto file is newer.
"""

import pathlib
import sys

import grpc_tools
from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto"
GENERATED = HERE / "generated"
STAMP = GENERATED / "complete"

files = sorted(PROTO.glob("devp2p/v1/*.proto"))
if not STAMP.exists() or any(file.stat().st_mtime > STAMP.stat().st_mtime for file in files):
    GENERATED.mkdir(exist_ok=True)
    google = pathlib.Path(grpc_tools.__file__).parent / "_proto"  # google/protobuf/*.proto
    arguments = [f"-I{PROTO}", f"-I{google}", f"--python_out={GENERATED}", f"--grpc_python_out={GENERATED}"]
    if protoc.main(["protoc", *arguments, *map(str, files)]) != 0:
        sys.exit("stubs.py: protoc failed; its message stands above")
    STAMP.touch()

sys.path.insert(0, str(GENERATED))

from devp2p.v1 import discovery_pb2, discovery_pb2_grpc  # noqa: E402, F401
from devp2p.v1 import message_pb2, message_pb2_grpc, protocol_pb2, types_pb2  # noqa: E402, F401
