"""What a directory or an image is to a function."""

import errno
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

from firstlight.agile.functions import settings
from firstlight.agile.functions.base import RUNTIME
from firstlight.agile.functions.records import LATEST, Code, ImageSettings, Registration, Settings
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.http import lambda_shapes
from firstlight.agile.parts import roots
from firstlight.agile.serving import kept_instance, per_event, web
from firstlight.errors import Failed


@pytest.mark.parametrize(
    ("files", "command", "handler", "is_root"),
    [
        (["app.py"], ["/usr/bin/python3", "app.py"], "", False),
        (["app.py", "bin/tool"], ["/usr/bin/python3", "app.py"], "", False),
        (["bin/tool"], ["/bin/tool"], "", True),
        (["usr/bin/tool"], ["tool"], "", False),  # not executable: PATH does not lead to it
        (["run.sh"], ["./run.sh"], "", False),
        (["app.py"], [], "app:main", False),
        (["app.py", "usr/bin/python3"], [], "app:main", True),
        (["bin/tool", "app.py"], ["/bin/tool"], "app:main", False),
    ],
)
def test_a_directory_is_the_root_of_a_program_that_it_has(
    tmp_path: Path, files: list[str], command: list[str], handler: str, is_root: bool
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = Settings(command=tuple(command), handler=handler)
    assert settings.is_root(tmp_path, given) == is_root


def test_a_directory_without_an_explicit_root_is_code(tmp_path: Path) -> None:
    assert not settings.is_root(tmp_path, Settings())


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (Settings(command=("./run.sh",)), "command"),
        (Settings(handler="app:main"), "python"),
        (Settings(kind="http", command=("serve",)), "http"),
    ],
)
def test_code_with_a_command_alone_is_a_command(given: Settings, kind: str) -> None:
    code = Code(source="/code", digest=f"sha256:{'0' * 64}", size=1, trees=(1,), base=True)
    assert settings.made("f", 1, given, code, None, "").version.kind == kind


def test_a_lambda_handler_may_have_a_search_path_of_its_own() -> None:
    code = Code(source="/code", digest=f"sha256:{'0' * 64}", size=1, trees=(1,), base=True)
    for given, expected in (({}, RUNTIME), ({"PYTHONPATH": "/a:/b"}, f"/a:/b:{RUNTIME}")):
        handled = Settings(handler="app.main", environment=given)
        version = settings.made("f", 1, handled, code, None, "").version
        assert version.environment["PYTHONPATH"] == expected


@pytest.mark.parametrize(
    ("kind", "handler"),
    [("command", ""), ("http", ""), ("image", ""), ("python", "app.main"), ("python", "app:main")],
)
def test_each_kind_is_started_with_its_limits(kind: str, handler: str) -> None:
    version = FunctionVersion(name="f", kind=kind, handler=handler)  # type: ignore[arg-type]
    definition = {"http": web.definition, "command": per_event.definition}.get(
        kind, kept_instance.definition
    )
    if ":" in handler:
        definition = per_event.handler_definition
    for limits in ({}, {"pids": 7, "scratch": 1 << 20, "memory": 64 << 20, "cpus": 0.5}):
        given = msgspec.structs.replace(version, **limits)
        for name in ("pids", "scratch", "memory", "cpus"):
            assert getattr(definition(given), name) == getattr(given, name)
    assert version.pids == 1024


def test_words_that_are_not_text_are_refused() -> None:
    code = Code(source="/code", digest=f"sha256:{'0' * 64}", size=1, trees=(1,), base=True)
    for given in (
        Settings(command=("a\udcff",)),
        Settings(command=("a",), environment={"A": "\udcff"}),
        Settings(handler="app:\udcff"),
    ):
        with pytest.raises(Failed, match="not UTF-8"):
            settings.made("f", 1, given, code, None, "")


def test_image_words_that_are_no_variables_are_ignored() -> None:
    code = Code(source="oci:x", digest=f"sha256:{'0' * 64}", size=1, trees=(1,))
    text = b"""{"Entrypoint": ["/entry"], "Cmd": null, "WorkingDir": null, "User": "app:none",
        "Env": ["A=1", "", "NONE", "=x", "B=", "C=a=b"], "Labels": null, "StopSignal": "SIGWHAT",
        "ExposedPorts": {"x/y": {}}, "Volumes": {"/a": null}, "Healthcheck": {"Test": []}}"""
    own = msgspec.json.decode(text, type=ImageSettings)
    version = settings.made("f", 1, Settings(), code, own, "").version
    assert version.environment == {"A": "1", "B": "", "C": "a=b"}
    assert version.directory == "/"


def test_a_relative_directory_of_an_image_is_named() -> None:
    code = Code(source="oci:x", digest=f"sha256:{'0' * 64}", size=1, trees=(1,))
    own = ImageSettings(entrypoint=["/entry"], working_dir="task")
    with pytest.raises(Failed, match="the working directory of f is 'task'") as error:
        settings.made("f", 1, Settings(), code, own, "")
    assert "--directory" in (error.value.hint or "")
    given = Settings(directory="/task")
    assert settings.made("f", 1, given, code, own, "").version.directory == "/task"


def test_what_replaces_an_images_own_settings_is_shown() -> None:
    code = Code(source="docker://x", digest=f"sha256:{'0' * 64}", size=1, trees=(1,))
    own = ImageSettings(entrypoint=["/entry"], working_dir="/task")

    def shown(given: Settings) -> object:
        revision = settings.made("f", 1, given, code, own, "")
        function = Registration(name="f", revisions={LATEST: revision})
        return lambda_shapes.configuration(function, revision).get("ImageConfigResponse")

    assert shown(Settings()) is None
    assert shown(Settings(arguments=("app.main",), directory="/other")) == {
        "ImageConfig": {"EntryPoint": [], "Command": ["app.main"], "WorkingDirectory": "/other"}
    }


def test_what_means_nothing_here_is_shown_as_it_was_given() -> None:
    code = Code(source="docker://x", digest=f"sha256:{'0' * 64}", size=1, trees=(1,))
    own = ImageSettings(entrypoint=["/entry"])
    given: dict[str, Any] = {
        "TracingConfig": {"Mode": "Active"}, "SnapStart": {"ApplyOn": "PublishedVersions"},
        "LoggingConfig": {"LogFormat": "JSON", "ApplicationLogLevel": "DEBUG"},
        "KMSKeyArn": "arn:aws:kms:us-east-1:000000000000:key/x",
        "Role": "arn:aws:iam::000000000000:role/service-role/x",
    }  # fmt: skip

    def shown(settled: Settings) -> dict[str, Any]:
        revision = settings.made("f", 1, settled, code, own, "")
        answer = lambda_shapes.configuration(
            Registration(name="f", revisions={LATEST: revision}), revision
        )
        return {name: answer[name] for name in given if name in answer}

    before = msgspec.convert(given, lambda_shapes.Configuration).settings()
    changed = msgspec.convert({"Timeout": 9}, lambda_shapes.Configuration).settings()
    expected = {
        **given,
        "LoggingConfig": {**given["LoggingConfig"], "LogGroup": "/aws/lambda/f"},
        "SnapStart": {**given["SnapStart"], "OptimizationStatus": "Off"},
    }
    assert shown(before) == shown(settings.merged(before, changed)) == expected
    assert shown(Settings()) == {
        "TracingConfig": {"Mode": "PassThrough"},
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": "/aws/lambda/f"},
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
    }


@pytest.mark.parametrize(
    "reset",
    [
        b'{"Environment": {}}', b'{"Environment": {"Variables": {}}}', b'{"Description": ""}',
        b'{"ImageConfig": {}}',
        b'{"ImageConfig": {"EntryPoint": [], "Command": [], "WorkingDirectory": ""}}',
        b'{"Layers": []}', b'{"VpcConfig": {"SubnetIds": [], "SecurityGroupIds": []}}',
        b'{"FileSystemConfigs": []}', b'{"DeadLetterConfig": {"TargetArn": ""}}',
    ],
)  # fmt: skip
def test_empty_member_resets_only_its_setting(reset: bytes) -> None:
    code = Code(source="docker://x", digest=f"sha256:{'0' * 64}", size=1, trees=(1,))
    own = ImageSettings(entrypoint=["/entry"], cmd=["own"], env=["OWN=1"], working_dir="/task")
    before = Settings(
        environment={"A": "1"}, description="text", entrypoint=("/other",), arguments=("word",),
        directory="/other", timeout=7.0,
    )  # fmt: skip

    def shown(given: Settings) -> dict[str, object]:
        revision = settings.made("f", 1, given, code, own, "")
        function = Registration(name="f", revisions={LATEST: revision})
        answer = lambda_shapes.configuration(function, revision)
        command, directory = revision.version.command, revision.version.directory
        answer |= {"ran": (command, directory, revision.version.environment)}
        return {key: value for key, value in answer.items() if key != "LastModified"}

    asked = msgspec.json.decode(reset, type=lambda_shapes.Configuration)
    after = shown(settings.merged(before, asked.settings()))
    expected = shown(before)
    if b"Environment" in reset:
        del expected["Environment"]
        expected["ran"] = (("/other", "word"), "/other", {"OWN": "1"})
    if b"Description" in reset:
        expected["Description"] = ""
    if b"ImageConfig" in reset:
        del expected["ImageConfigResponse"]
        expected["ran"] = (("/entry", "own"), "/task", {"OWN": "1", "A": "1"})
    assert after == expected


@pytest.mark.parametrize(
    "refused",
    [
        b'{"Role": "none"}', b'{"Role": "arn:aws:iam::0:role/x"}', b'{"Handler": "app main"}',
        b'{"Handler": "app.main\\n"}', b'{"MemorySize": 127}', b'{"Timeout": 901}',
        b'{"Environment": {"Variables": {"AWS_LAMBDA_FUNCTION_NAME": "x"}}}',
        b'{"Environment": {"Variables": {"AWS_DEFAULT_REGION": "x"}}}',
        b'{"Environment": {"Variables": {"1A": "x"}}}', b'{"Environment": {"Variables": {"": ""}}}',
        b'{"Layers": ["arn"]}', b'{"DurableConfig": {"ExecutionTimeout": 1}}', b'{"Runtime": "go"}',
    ],
)  # fmt: skip
def test_settings_that_a_function_cannot_have_are_refused(refused: bytes) -> None:
    with pytest.raises((Failed, msgspec.ValidationError)):
        msgspec.json.decode(refused, type=lambda_shapes.Configuration).settings()


def test_variables_of_the_node_are_refused() -> None:
    version = FunctionVersion(name="f", kind="bootstrap")
    changed = dict.fromkeys(
        (*kept_instance.environment(version), *kept_instance._of_instance(version)), "other"
    )
    given = msgspec.structs.replace(version, environment=changed)
    kept_as_given = kept_instance.environment(given) | kept_instance._of_instance(given)
    assert {name for name, value in kept_as_given.items() if value != "other"} == settings.RESERVED

    code = Code(source="/code", digest=f"sha256:{'0' * 64}", size=1, trees=(1,), base=True)
    for name in settings.RESERVED:
        environment = {name: "other"}
        settings.made("f", 1, Settings(command=("x",), environment=environment), code, None, "")
        with pytest.raises(Failed, match=name):
            settings.made("f", 1, Settings(handler="a.b", environment=environment), code, None, "")


def test_image_environment_may_exceed_the_limit_of_functions() -> None:
    code = Code(source="oci:x", digest=f"sha256:{'0' * 64}", size=1, trees=(1,))
    own = ImageSettings(
        entrypoint=["/entry"], env=["LAMBDA_TASK_ROOT=/var/task", f"A={'é' * 4000}"]
    )
    assert settings.made("f", 1, Settings(), code, own, "").version.environment["A"]
    for letters, refused in ((2047, False), (2048, True)):
        given = Settings(environment={"A": "é" * letters})
        with pytest.raises(Failed, match="4097 bytes") if refused else nullcontext():
            settings.made("f", 1, given, code, own, "")


@pytest.mark.parametrize("handler", ["app", "app:", ":main", "", ".main"])
def test_what_names_no_handler_is_refused(handler: str) -> None:
    with pytest.raises(Failed, match="does not name a handler"):
        per_event.check_name(handler)


def test_named_handler_replaces_image_entry_point() -> None:
    code = Code(source="docker://x", digest=f"sha256:{'0' * 64}", size=1, trees=(1,))
    own = ImageSettings(
        entrypoint=["/entry"], cmd=["app.main"], env=["WORD=one"], working_dir="/task"
    )
    plain = settings.made("f", 1, Settings(), code, own, "").version
    assert (plain.kind, plain.command) == ("image", ("/entry", "app.main"))
    given = Settings(kind="python", handler="app.main")
    called = settings.made("f", 1, given, code, own, "").version
    assert (called.command, called.handler) == ((), "app.main")
    assert (called.environment, called.directory) == ({"WORD": "one"}, "/task")


def test_an_instance_can_work_where_the_node_mounts_something(tmp_path: Path) -> None:
    for directory in ("/tmp", "/tmp/", "/dev", "/proc"):
        roots.check_command(tmp_path, "found-when-it-starts", directory=directory)
    for directory in ("/none", "/tmp/none"):
        with pytest.raises(Failed, match=f"has no directory {directory} to work in"):
            roots.check_command(tmp_path, "found-when-it-starts", directory=directory)


def test_a_program_is_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo", 0o755)
    (tmp_path / "link").symlink_to("fifo")
    kinds = {"directory": "a directory", "fifo": "no regular file", "link": "no regular file"}
    for name, kind in kinds.items():
        with pytest.raises(Failed, match=f"/{name} in .* is {kind}") as failed:
            roots.check_command(tmp_path, f"/{name}")
        assert failed.value.hint == "name a program"


def test_what_an_instance_has_of_its_own_is_no_etc(tmp_path: Path) -> None:
    for target, name in (("tmp", "tmp"), ("/tmp/etc", "tmp"), ("./proc/x", "proc")):
        (tmp_path / "etc").symlink_to(target)
        with pytest.raises(Failed, match=f"etc in the root .* leads to /{name}, which"):
            roots.open_root(tmp_path, tmp_path / "skeleton")
        (tmp_path / "etc").unlink()


def test_circle_of_links_and_long_names_are_left_to_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    script = tmp_path / "script"
    script.write_text("#!/circle\n")
    script.chmod(0o755)
    roots.check_command(tmp_path, "/script")
    for path in ("/circle/x", "/" + "x" * 300, "/" + "x/" * 3000):
        assert roots.inside(tmp_path, path) is None
        roots.check_command(tmp_path, path)
        roots.check_command(tmp_path, "found-when-it-starts", directory=path)


def test_only_names_within_a_root_are_shown(tmp_path: Path) -> None:
    root = tmp_path / "host/root"
    (root / "code").mkdir(parents=True)
    (root / "app.py").touch()
    (tmp_path / "host/secret").touch()
    (root / "out").symlink_to(tmp_path / "host")
    (root / "up").symlink_to("..")
    (root / "in").symlink_to("/code")
    top = "'app.py', 'code', 'in', 'out', 'up'"
    for directory, shown in {
        "/": top, "/../..": top, "/code/../..": top, "/up": top, "/code": "nothing",
        "/in": "nothing", "/out": "", "/missing": "", "/app.py": "", "/n" * 4096: "",
    }.items():  # fmt: skip
        version = FunctionVersion(
            name="f", kind="python", handler="a:b", root=str(root), directory=directory
        )
        expected = f"{directory} has {shown}" if shown else ""
        assert settings.contents(version) == expected
    for index in range(12):
        (root / f"code/{index:02}").touch()
    shown = settings.contents(msgspec.structs.replace(version, directory="/code"))
    assert shown.endswith("'09', 2 more")


def test_a_path_that_leaves_its_root_is_left_to_the_kernel(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "code").mkdir(parents=True)
    for path in ("/../x", "/code/../../x", "/code/../.."):
        assert roots.inside(root, path) is None
    assert roots.inside(root, "/code/../x") == root / "code/../x"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError(errno.EACCES, "Permission denied", "/r/x"), "Permission denied: /r/x"),
    ],
)
def test_a_disks_error_is_reported(error: OSError, words: str) -> None:
    with pytest.raises(Failed) as failed, roots.readable("/r"):
        raise error
    assert failed.value.message == f"cannot look into /r: {words}"
