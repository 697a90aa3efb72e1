"""The demo page in a real browser, and as a Space that runs without this repository."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
import yaml
from PIL import Image

import tools.demo
from builders import ROOT, tiny_detector
from errors import UserError
from pages import browser, needs_browser, requests_of, waited


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    detector = tiny_detector(folder / "backbone", "deformable_detr")
    detector.model.save_pretrained(folder / "plates/export")
    detector.trainable.processor.save_pretrained(folder / "plates/export")
    return folder / "plates/export"


def test_a_space_has_what_the_hub_reads(model, tmp_path, capsys):
    out = tmp_path / "space"
    tools.demo.main(["--model", str(model), "--space", str(out), "--threshold", "0.3"])
    header, _, text = (out / "README.md").read_text().removeprefix("---\n").partition("\n---\n")
    read = yaml.safe_load(header)
    assert (read["sdk"], read["app_file"], read["title"]) == ("gradio", "app.py", "plates")
    assert f"gradio=={read['sdk_version']}" in (ROOT / "requirements-demo.txt").read_text()
    assert "torch==2.13.0\n" in (out / "requirements.txt").read_text()
    assert json.loads((out / "model/permafrost.json").read_text()) == {"threshold": 0.3}
    assert (out / "model/model.safetensors").read_bytes() == (
        model / "model.safetensors"
    ).read_bytes()
    assert "hf upload --repo-type space" in capsys.readouterr().out
    with pytest.raises(UserError, match="is there already"):
        tools.demo.main(["--model", str(model), "--space", str(out)])


def test_a_model_that_wants_windows_is_no_space(model, tmp_path):
    """The pipeline of transformers would find less, and nobody would know why."""
    copy, out = shutil.copytree(model, tmp_path / "copy"), tmp_path / "space"
    (copy / "permafrost.json").write_text('{"tiles": {"size": 40}}')
    with pytest.raises(UserError, match="used on windows of images"):
        tools.demo.main(["--model", str(copy), "--space", str(out)])
    assert not out.exists()


def test_a_missing_package_is_named_with_the_command_that_installs_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"gradio.*pip install -r requirements-demo.txt"):
        tools.demo.main(["--model", str(model)])


def free_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


@contextlib.contextmanager
def served(command, port, **environment):
    """A page's process, when it answers."""
    own = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(command, cwd="/", env=own, stderr=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(120):
                assert process.poll() is None, process.stderr.read()
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def take_an_image(driver, address, photo):
    """Drop an image; words below it, and pixels of it as drawn."""
    driver.get(address)
    waited(driver, lambda d: d.find_elements("css selector", "input[type=file]"))[0].send_keys(
        str(photo)
    )
    return waited(driver, lambda d: d.find_element("id", "words").text)


def boxes_shown(driver):
    """Images that the page has laid over the photo: one for each box or mask."""
    return driver.find_elements("css selector", "#found img.mask")


def set_threshold(driver, value):
    field = driver.find_element("css selector", "input[type=number]")
    driver.execute_script(
        "arguments[0].value = arguments[1];"
        "arguments[0].dispatchEvent(new Event('input', {bubbles: true}));"
        "arguments[0].dispatchEvent(new Event('change', {bubbles: true}));"
        "arguments[0].dispatchEvent(new Event('blur', {bubbles: true}));",
        *(field, str(value)),
    )


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("kind", ["page", "space"])
def test_the_page_takes_an_image_and_shows_boxes(model, tmp_path, kind):
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (96, 64), (90, 120, 60)).save(photo)
    port = free_port()
    command = [sys.executable, "-m", "tools.demo", "--model", str(model), "--threshold", "0"]
    own = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    command += ["--port", str(port)]
    if kind == "space":
        out = tmp_path / "space"
        tools.demo.main(["--model", str(model), "--space", str(out), "--threshold", "0"])
        command = [sys.executable, str(out / "app.py")]
        own = {"PYTHONPATH": "", "GRADIO_SERVER_PORT": str(port)}
    with served(command, port, **own) as address, browser() as driver:
        words = take_an_image(driver, address, photo)
        num = int(words.split(" of ")[0])
        assert num > 0
        assert words == f"{num} of {num} found have a score of at least 0.00"
        assert len(waited(driver, boxes_shown)) == num
        if folder := os.environ.get("SCREENSHOTS"):
            driver.save_screenshot(f"{folder}/demo-{kind}.png")
        set_threshold(driver, 1)
        waited(driver, lambda d: d.find_element("id", "words").text.startswith("0 of"))
        waited(driver, lambda d: not boxes_shown(d))
        assert {url.partition("127.0.0.1")[0] for url in requests_of(driver)} <= {
            "http://",
            "ws://",
        }
        errors = [row for row in driver.get_log("browser") if row["level"] == "SEVERE"]
        assert not errors
