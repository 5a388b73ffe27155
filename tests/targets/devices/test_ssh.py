"""Devices over ssh: a real sshd on loopback, and everything that can go wrong with one."""

from __future__ import annotations

import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.errors import BudgetError, UsageError
from onnxpress.targets.devices.base import DeviceError
from onnxpress.targets.devices.device import open_device
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from tests.passes.residual_net import residual_net
from tests.support import random_feeds, run, text_model
from tests.targets.devices.conftest import Sshd, wait_for

_FOREVER = 10_000_000  # rounds


@pytest.fixture
def net() -> onnx_ir.Model:
    return residual_net()


def test_models_are_run_and_timed_side_by_side(sshd: Sshd, net: onnx_ir.Model) -> None:
    feeds = random_feeds(net, batch=1)
    device = open_device(sshd.text)
    found = device.run({"a": net, "b": net}, feeds, rounds=6, warmup=1, node_rounds=3, outputs=True)
    assert list(found.models) == ["a", "b"]
    for model in found.models.values():
        assert len(model.latency.wall_ms) == len(model.latency.cpu_ms) == 6
        assert model.load_seconds is not None and model.load_seconds > 0
        assert [origin for step in model.node_times for origin in step.origins][:2] == ["stem", "relu"]
        np.testing.assert_allclose(model.outputs["y"], run(net, feeds)[0], rtol=1e-4, atol=1e-5)
    assert found.machine.cores >= 1 and re.match(r"\d+\.\d+", found.machine.runtime_version)
    assert found.peak_rss_bytes > 1 << 20
    assert list(sshd.folder.iterdir()) == []


def test_a_refused_model_keeps_the_runtimes_message_and_names_the_node(sshd: Sshd) -> None:
    model = text_model("""<ir_version: 8, opset_import: ["": 17, "com.foo": 1]>
        g (float[1,4] x) => (float[1,4] y) { [plain] a = Relu (x)
        [strange] y = com.foo.Bar (a) }""")
    with pytest.raises(RuntimeRefusalError) as caught:
        open_device(sshd.text).run({"after": model}, random_feeds(model))
    assert re.sub(r"[\d.]+: does", "V: does", str(caught.value)) == (
        f"{sshd.text}: onnxruntime V: does not load model 'after': FAIL : Fatal error: com.foo:Bar(-1) is not a "
        "registered function/op (node 'strange')"
    )
    assert caught.value.exit_code == 1
    assert list(sshd.folder.iterdir()) == []


def test_a_device_without_onnxruntime_says_what_to_install(sshd: Sshd, net: onnx_ir.Model) -> None:
    device = sshd.with_python(sshd.python("-I", "-S"))
    with pytest.raises(UsageError) as caught:
        open_device(device).run({"a": net}, random_feeds(net))
    assert re.sub(r"Python 3\.[\d.]+, \S+,", "Python 3.V, PATH,", str(caught.value)) == (
        f"{device}: Python 3.V, PATH, cannot import what the runner needs: No module named 'numpy'. Install it there: "
        f"python3 -m pip install onnxruntime numpy, or name a Python that has it: {device.partition('?')[0]}"
        "?python=/path/to/python"
    )
    assert list(sshd.folder.iterdir()) == []


def test_a_device_without_python_says_so(sshd: Sshd, net: onnx_ir.Model) -> None:
    device = sshd.with_python(Path("/nowhere/python3"))
    with pytest.raises(UsageError) as caught:
        open_device(device).run({"a": net}, random_feeds(net))
    message = str(caught.value)
    assert message.startswith(f"{device}: /nowhere/python3 does not start there (exit status 127): ")
    assert message.endswith(
        f"Install Python 3.8 or later with numpy and onnxruntime, or name the one to use: {device.partition('?')[0]}"
        "?python=/path/to/python"
    )


def test_nobody_at_that_port(sshd: Sshd, net: onnx_ir.Model) -> None:
    with pytest.raises(UsageError) as caught:
        open_device("ssh://nobody@127.0.0.1:1").run({"a": net}, random_feeds(net))
    assert str(caught.value) == (
        "ssh://nobody@127.0.0.1:1: ssh does not get there: ssh: connect to host 127.0.0.1 port 1: Connection refused. "
        "This must work without a question: ssh -o BatchMode=yes -p 1 -- nobody@127.0.0.1 true"
    )


def test_a_login_that_asks_fails(sshd: Sshd, net: onnx_ir.Model) -> None:
    stranger = re.sub(r"//\w+@", "//stranger@", sshd.text)
    with pytest.raises(
        UsageError, match=r"ssh does not get there: stranger@127\.0\.0\.1: Permission denied \(.*\)\. This"
    ):
        open_device(stranger).run({"a": net}, random_feeds(net))


def test_a_connection_that_is_lost_is_told_and_nothing_stays(sshd: Sshd, net: onnx_ir.Model, tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    python = sshd.python(redirect=f"2> >(tee {steps} >&2)")
    dropped = threading.Thread(target=_drop_at, args=(sshd, steps, "timing"))
    dropped.start()
    with pytest.raises(DeviceError) as caught:
        open_device(sshd.with_python(python)).run({"a": net}, random_feeds(net), rounds=_FOREVER, timeout_seconds=60)
    dropped.join()
    assert f": the connection was lost while timing 'a' in {_FOREVER} rounds: Connection" in str(caught.value)
    assert str(caught.value).endswith("What was sent there is removed when the device notices")
    assert isinstance(caught.value, BudgetError) and caught.value.exit_code == 1
    wait_for(lambda: list(sshd.folder.iterdir()) == [])


def _drop_at(sshd: Sshd, steps: Path, step: str) -> None:
    wait_for(lambda: steps.exists() and step in steps.read_text())
    sshd.drop_connections()


def test_time_is_up(sshd: Sshd, net: onnx_ir.Model) -> None:
    start = time.monotonic()
    with pytest.raises(DeviceError, match=r": not done after 3 s, while .*\. Give it more time, or fewer rounds$"):
        open_device(sshd.text).run({"a": net}, random_feeds(net), rounds=_FOREVER, timeout_seconds=3)
    assert time.monotonic() - start < 20
    wait_for(lambda: list(sshd.folder.iterdir()) == [])


def test_words_of_a_login_shell_do_no_harm(sshd: Sshd, net: onnx_ir.Model, tmp_path: Path) -> None:
    noisy = tmp_path / "noisy"
    noisy.write_text(f'#!/bin/sh\necho "Welcome! {{}}"\necho hello >&2\nexec {sshd.python()} "$@"\n')
    noisy.chmod(0o755)
    found = open_device(sshd.with_python(noisy)).run({"a": net}, random_feeds(net), rounds=2)
    assert len(found.models["a"].latency.wall_ms) == 2


def test_the_command_asks_nothing_and_notices_silence(sshd: Sshd) -> None:
    command = open_device("ssh://pi@[::1]:2222?python=~/my venv/bin/python")._command()  # type: ignore[attr-defined]
    assert {"-oBatchMode=yes", "-oConnectTimeout=10", "-oServerAliveInterval=5", "-oControlMaster=no"} <= set(command)
    assert command[-5:-1] == ["-p", "2222", "--", "pi@::1"]
    assert command[-1].startswith("exec ~/'my venv/bin/python' -u -c 'import sys; exec(")
    assert command[-1].count("'") == 4 and "!" not in command[-1]  # it passes through any shell


def test_no_ssh_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("ssh") is None
    with pytest.raises(UsageError) as caught:
        open_device("ssh://pi@raspberry")
    assert str(caught.value) == (
        "ssh://pi@raspberry: no program 'ssh' is installed here, which reaches such a device: install OpenSSH's client "
        "(Debian: apt-get install openssh-client)"
    )
