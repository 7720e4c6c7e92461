"""The lab's decisions: nothing here boots or fetches anything."""

import dataclasses
import shlex
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.lab import (
    __main__,
    accel,
    archive,
    control,
    job,
    kernellog,
    kernels,
    machine,
    progress,
    sources,
    tools,
    versions,
)
from tests.lab.arch import Arch
from tests.lab.control import Message, Word
from tests.lab.errors import Exit, LabError
from tests.lab.kernels import Kernel
from tests.lab.machine import Accel, Machine, Wiring

ARCH = Arch("amd64", "qemu-system-x86_64", "q35", "ttyS0")
WIRING = Wiring(Path("/t/s"), Path("/t/s/root.sock"), Path("/t/s/kernel.log"), (5, 6, 7), None)


def a_machine(how: Accel = Accel.TCG) -> Machine:
    return Machine(ARCH, Path("/k/vmlinuz"), how, cpus=2, memory=3072)


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_archive_is_found_in_the_one_line_format() -> None:
    text = """\
# deb http://old.example/debian bookworm main
deb-src http://src.example/debian bookworm main
deb https://packages.example/apt cloud-sdk-bookworm main
deb http://sec.example/debian-security bookworm-security main
deb [arch=amd64 signed-by=/usr/k.gpg] http://mirror.example/debian bookworm main contrib # ours
"""
    assert sources.debian_archive(sources.parse_list(text)) == "http://mirror.example/debian"


def test_archive_is_found_in_the_stanza_format() -> None:
    text = """\
Types: deb
# URIs: http://comment.example/
URIs: http://mirror.example/debian
Suites: trixie
  trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp

Types: deb
URIs: http://sec.example/debian-security
Suites: trixie-security
Components: main
"""
    first, second = sources.parse_deb822(text)
    assert first.suites == ("trixie", "trixie-updates")
    assert sources.debian_archive([second, first]) == "http://mirror.example/debian"


def test_disabled_stanza_is_left_out() -> None:
    text = "Types: deb\nURIs: http://a.example\nSuites: sid\nComponents: main\nEnabled: no\n"
    assert sources.debian_archive(sources.parse_deb822(text)) is None


def test_private_apt_keeps_the_proxy_and_nothing_else_of_the_host() -> None:
    text = archive.configuration(Path("/c"), 'Acquire::http::Proxy "http://p.example:3128";')
    assert 'Acquire::http::Proxy "http://p.example:3128";' in text
    assert 'Dir::Etc::parts "-";' in text
    assert 'Dir::State "/c/state";' in text


def test_show_gives_size_and_dependencies() -> None:
    text = """\
Package: linux-image-7.2.12-cloud-amd64
Version: 7.2.12-1
Size: 42
Depends: linux-binary-7.2.12 (= 7.2.12-1), kmod, a | b:any (>= 2) [amd64]

Package: other
Version: 1
"""
    image, other = archive.parse_show(text)
    assert (image.size, image.version) == (42, "7.2.12-1")
    assert image.depends == ("linux-binary-7.2.12", "kmod", "a", "b")
    assert other.depends == ()


def test_parts_of_a_kernel_are_taken_and_tools_are_not() -> None:
    depends = ["linux-binary-7.2", "linux-modules-7.2", "linux-base-7.2", "linux-base", "kmod"]
    assert kernels.kernel_parts(depends) == depends[:3]


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("7.2", "7.2.12+deb13-cloud-amd64", True),
        ("7.2", "7.20.1-cloud-amd64", False),
        ("7.2.12", "7.2.12+deb13-cloud-amd64", True),
        ("7.2.1", "7.2.12+deb13-cloud-amd64", False),
    ],
)
def test_name_is_a_prefix_of_whole_numbers(name: str, version: str, expected: bool) -> None:
    assert versions.matches(name, version) is expected


def test_newest_version_of_a_name_is_chosen_by_number() -> None:
    choice = versions.choose("7.2", ["7.2.9-x", "7.2.12-x", "7.3.1-x"])
    assert choice == versions.Choice("7.2.12-x", exact=True)


def test_later_kernel_replaces_one_that_is_gone() -> None:
    choice = versions.choose("7.2", ["6.12.107-x", "7.4.1-x", "7.10.2-x"])
    assert choice == versions.Choice("7.10.2-x", exact=False)
    assert versions.choose("8.0", ["6.12.107-x"]) is None


def test_only_images_of_the_flavour_are_versions() -> None:
    names = [
        "linux-image-7.2.12+deb13-cloud-amd64",
        "linux-image-7.2.12+deb13-cloud-amd64-unsigned",
        "linux-image-cloud-amd64",
        "linux-image-7.2.12+deb13-amd64",
    ]
    assert versions.of_packages(names, "cloud-amd64") == ["7.2.12+deb13-cloud-amd64"]


def test_host_kernel_needs_its_root_file_system_built_in() -> None:
    builtin = "kernel/fs/fuse/virtiofs.ko\nkernel/drivers/virtio/virtio_pci.ko\n"
    dep = "kernel/drivers/block/ublk_drv.ko.xz: kernel/a.ko.xz\n"
    assert kernels.unfit(builtin, dep) == ""
    assert "virtiofs" in kernels.unfit("kernel/drivers/virtio/virtio_pci.ko", dep)
    assert "ublk_drv" in kernels.unfit(builtin, "")


def test_tools_come_from_the_suite_of_a_debian_host_only() -> None:
    assert tools.codename_of('ID=debian\nVERSION_CODENAME="trixie"\n') == "trixie"
    assert tools.codename_of("ID=ubuntu\nVERSION_CODENAME=noble\n") is None


def test_emulated_machine_has_the_cpus_and_memory_asked_for() -> None:
    words = machine.qemu(a_machine(), WIRING)
    assert after(words, "-smp") == "2"
    assert after(words, "-m") == "3072M"
    assert after(words, "-accel").startswith("tcg,thread=multi")
    assert after(words, "-cpu") == "max,-cx16"
    assert "root=root rootfstype=virtiofs ro" in after(words, "-append")
    assert "virtconsole" not in " ".join(words)


def test_counting_machine_has_one_cpu_and_no_kvm() -> None:
    words = machine.qemu(a_machine(Accel.COUNTING), WIRING)
    assert after(words, "-smp") == "1"
    assert after(words, "-icount") == "shift=1,sleep=off"
    assert after(words, "-accel") == "tcg,thread=single"
    assert accel.candidates(counting=True, kvm=True) == (Accel.COUNTING,)


def test_kvm_is_tried_unless_it_is_known_to_fail() -> None:
    assert accel.candidates(counting=False, kvm=None) == (Accel.KVM, Accel.TCG)
    assert accel.candidates(counting=False, kvm=False) == (Accel.TCG,)


def test_both_virtiofsd_get_their_own_options() -> None:
    c_says = "virtiofsd version 7.2\nusing FUSE kernel interface version 7.36\n"
    old = machine.virtiofsd(Path("/v"), 9, c_says)
    new = machine.virtiofsd(Path("/v"), 9, "virtiofsd 1.13.0\n")
    assert old[:4] == ["/v", "--fd=9", "-o", "source=/"]
    assert "--shared-dir=/" in new
    assert "--fd=9" in new


@pytest.mark.parametrize("text", ["3", "3T", "-1G", "64M", ""])
def test_odd_memory_is_a_usage_error(text: str) -> None:
    with pytest.raises(LabError) as caught:
        machine.parse_memory(text)
    assert caught.value.status is Exit.USAGE


def test_status_line_is_read_across_reads() -> None:
    reader = control.Reader()
    assert reader.feed(b"init\njob\nex") == [Message(Word.INIT), Message(Word.JOB)]
    (message,) = reader.feed(b"it 7\n")
    assert message.status == 7


@pytest.mark.parametrize("line", ["exit", "exit x", "exit -1", "hello", ""])
def test_noise_on_the_control_port_is_no_message(line: str) -> None:
    assert control.parse(line) is None


def test_job_runs_the_command_unchanged() -> None:
    command = "echo 'a b' \"$HOME\"\nexit 3"
    text = job.script(job.Job(command, Path("/my project"), {"A": "it's"}))
    assert f"-c {shlex.quote(command)}" in text
    assert "cd '/my project'" in text
    assert shlex.split(text.splitlines()[1]) == ["export", "A=it's"]


def test_venv_comes_first_and_only_named_variables_pass() -> None:
    host = {"PATH": "/opt/bin:/usr/bin", "SECRET": "1", "WANTED": "2"}
    environ = job.environment(host, Path("/p"), ["WANTED", "MISSING"], venv=True)
    assert environ["PATH"].startswith("/p/.venv/bin:/opt/bin:/usr/bin:")
    assert environ["WANTED"] == "2"
    assert not {"SECRET", "MISSING"} & environ.keys()


def test_project_is_bound_read_only_with_its_spaces_escaped() -> None:
    what = job.Job("true", Path("/my project"), {})
    text = job.fstab(what, Kernel("7.2", Path("/k"), None), 4096)
    assert "/run/host/my\\040project /my\\040project none bind,ro," in text
    assert "size=3072M" in text


def test_systemd_is_process_1_where_something_runs_before_it(tmp_path: Path) -> None:
    kernel = Kernel("7.2", Path("/k"), None)
    plain = job.Job("true", Path("/p"), {"A": "1"})
    assert "LAB_SYSTEMD=''" in job.settings(plain, kernel, None)
    job.write(tmp_path, plain, kernel, None, 1024)
    assert not (tmp_path / "before").exists()
    booted = job.Job("true", Path("/p"), {"A": "1"}, before="make 'it'")
    assert "LAB_SYSTEMD=1" in job.settings(booted, kernel, None)
    job.write(tmp_path, booted, kernel, None, 1024)
    before = (tmp_path / "before").read_text()
    assert shlex.quote("make 'it'") in before
    assert "export A=1" in before
    assert (tmp_path / "systemd" / "boot.sh").exists()


@pytest.mark.parametrize(
    ("words", "before"),
    [
        ([], None),
        (["--systemd"], ":"),
        (["--before", "install"], "install"),
        (["--systemd", "--before", "install"], "install"),
    ],
)
def test_a_command_before_systemd_means_systemd(words: list[str], before: str | None) -> None:
    arguments = __main__._parser().parse_args(["run", *words, "--", "true"])
    assert __main__._job(arguments).before == before


def test_a_disk_must_be_there(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    arguments = __main__._parser().parse_args(["run", "--disk", str(image), "--", "true"])
    with pytest.raises(LabError, match="no disk image"):
        __main__._options(arguments)
    image.write_bytes(b"")
    assert __main__._options(arguments).disk == image
    words = machine.qemu(dataclasses.replace(a_machine(), disk=image), WIRING)
    assert after(words, "-drive").startswith(f"file={image},format=raw,")
    assert "-drive" not in machine.qemu(a_machine(), WIRING)


LOG = """\
[    0.9] WARNING: CPU: 0 at boot
[    1.9] lab: init
[    2.0] hrtimer: interrupt took 3 ns
[    3.0] INFO: task x:12 blocked for more than 120 seconds.
[    3.0] WARNING: CPU: 1 PID: 3 at ublk_drv.c:12
[    4.0] WARNING: CPU: 1 PID: 3 at ublk_drv.c:12
[    5.0] lab: blocked tasks
[    5.1] sysrq: Show Blocked State
[    5.2] task:fio state:D stack:0 pid:7
[    5.3] lab: all tasks
[    5.4] BUG: not a bug: the lab asked
"""


def test_kernel_trouble_is_what_follows_init_without_repeats() -> None:
    assert kernellog.trouble(LOG) == [
        "INFO: task x:12 blocked for more than 120 seconds.",
        "WARNING: CPU: 1 PID: 3 at ublk_drv.c:12",
    ]


def test_trouble_is_told_with_the_test_that_brought_it() -> None:
    log = LOG.replace("[    3.0]", "[    2.5] lab: test tests/t.py::a\n[    3.0]")
    assert kernellog.trouble(log) == [
        "INFO: task x:12 blocked for more than 120 seconds. (in tests/t.py::a)",
        "WARNING: CPU: 1 PID: 3 at ublk_drv.c:12 (in tests/t.py::a)",
    ]
    assert kernellog.last_test(log) == "tests/t.py::a"
    assert kernellog.last_test(LOG) == ""


def test_blocked_tasks_are_cut_out_of_the_dump() -> None:
    assert kernellog.blocked(LOG) == "[    5.2] task:fio state:D stack:0 pid:7"
    assert kernellog.blocked(LOG.replace("task:fio", "")) == ""


def test_death_is_shown_from_its_first_line() -> None:
    assert kernellog.death("a\nBUG: oh\nb\nc", 2) == "BUG: oh\nb"
    assert kernellog.death("a\nb\nc", 2) == "b\nc"


def test_progress_names_percent_and_size() -> None:
    assert progress.line("x", 1 << 20, 4 << 20) == "fetching x: 25% of 4.0 MiB"
