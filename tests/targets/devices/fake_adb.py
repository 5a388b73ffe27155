"""A program that answers as adb did in a recorded conversation: word for word and call by call, or it fails.

    fake_adb.py CONVERSATION WORDS...

CONVERSATION is a file of JSON: [{"words", "stdout", "stderr", "status"}, ...], what is printed as lists of lines. What
was answered is taken from the file. In words, X stands for names that are made up for each run, and DIGEST for those of
models, which are other bytes with another version of onnx-ir.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

__all__: list[str] = []


def _main() -> int:
    path, given = Path(sys.argv[1]), [_without_chance(word) for word in sys.argv[2:]]
    calls = json.loads(path.read_text())
    if not calls or calls[0]["words"] != given:
        expected = calls[0]["words"] if calls else "its end"
        print(f"error: not in the conversation: {given}, but {expected}", file=sys.stderr)
        return 1
    call, *rest = calls
    path.write_text(json.dumps(rest))
    time.sleep(call.get("seconds", 0))
    sys.stdout.write("\n".join(call["stdout"]))
    sys.stderr.write("\n".join(call["stderr"]))
    return int(call["status"])


def _without_chance(word: str) -> str:
    word = re.sub(r"^/.*/onnxpress-[a-z0-9_]+/(?=onnxpress-device-)", "LOCAL/", word)
    word = re.sub(r"onnxpress-device-[0-9a-f]{12}", "onnxpress-device-X", word)
    return re.sub(r"[0-9a-f]{64}", "DIGEST", word)


if __name__ == "__main__":
    sys.exit(_main())
