from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ublkd import features
from ublkd.errors import NotPossibleError, UblkdError
from ublkd.features import (
    LADDER,
    REQUIRED,
    Features,
    Lease,
    Recovery,
    Rung,
    granted,
    groups,
    lease_of,
    names,
    negotiate,
    recovery_of,
)
from ublkd.uapi import Feature

LINUX_6_12 = Feature(0x1FE)
LINUX_6_15 = LINUX_6_12 | Feature.SUPPORT_ZERO_COPY
LINUX_7_2 = Feature(0xFFFFF)
OLD = REQUIRED
HALF = REQUIRED | Feature.AUTO_BUF_REG  # auto without what serves a page that was not registered

feature_sets = st.integers(0, (1 << 64) - 1).map(Feature)
wishes = st.sampled_from([None, *Lease])

CHOICES = [
    (LINUX_6_12, None, Lease.COPY, "AUTO_BUF_REG (Linux 6.16 has it)"),
    (LINUX_6_12, Lease.COPY, Lease.COPY, "AUTO_BUF_REG"),
    (LINUX_7_2, None, Lease.AUTO, None),
    (LINUX_7_2, Lease.AUTO, Lease.AUTO, None),
    (LINUX_7_2, Lease.COPY, Lease.COPY, "--lease copy was asked for"),
    (OLD, None, Lease.COPY, "AUTO_BUF_REG"),
    (HALF, None, Lease.COPY, "lacks SUPPORT_ZERO_COPY, USER_COPY"),
    (LINUX_6_15, None, Lease.REGISTER, "AUTO_BUF_REG (Linux 6.16 has it)"),
    (LINUX_7_2, Lease.REGISTER, Lease.REGISTER, "--lease register was asked for"),
    (LINUX_6_12, Lease.USER_COPY, Lease.USER_COPY, "AUTO_BUF_REG"),
]


@pytest.mark.parametrize(("offered", "wanted", "lease", "why_not_auto"), CHOICES)
def test_the_best_lease_that_is_offered_or_wanted_is_chosen(
    offered: Feature, wanted: Lease | None, lease: Lease, why_not_auto: str | None
) -> None:
    verdict = negotiate(offered, wanted)
    assert verdict.lease is lease
    if why_not_auto is None:
        assert verdict.refused == {}
    else:
        assert why_not_auto in verdict.refused[Lease.AUTO]


@pytest.mark.parametrize("offered", [LINUX_6_12, OLD, HALF])
def test_insisting_on_what_is_not_offered_fails_with_the_reason(offered: Feature) -> None:
    with pytest.raises(NotPossibleError, match=r"lease auto is not possible: .*lacks") as caught:
        negotiate(offered, Lease.AUTO)
    assert "--lease" in caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("wanted", [None, *Lease])
@pytest.mark.parametrize("offered", [Feature(0), LINUX_7_2 & ~REQUIRED])
def test_a_driver_without_the_necessary_is_refused(offered: Feature, wanted: Lease | None) -> None:
    with pytest.raises(NotPossibleError, match="CMD_IOCTL_ENCODE") as caught:
        negotiate(offered, wanted)
    assert "6.5" in caught.value.hint


@given(feature_sets, wishes, st.booleans())
def test_any_driver_gives_a_lease_it_can_hold_or_a_clear_refusal(
    offered: Feature, wanted: Lease | None, groups: bool
) -> None:
    try:
        verdict = negotiate(offered, wanted, groups=groups)
    except NotPossibleError as error:
        assert error.hint
        assert REQUIRED not in offered or wanted is not None
        return
    leases = [rung.lease for rung in LADDER]
    place = leases.index(verdict.lease)
    assert LADDER[place].needs in offered
    asked = LADDER[place].needs | LADDER[place].asks | REQUIRED
    assert verdict.flags == asked | (offered & Feature.UPDATE_SIZE)
    assert groups or verdict.lease is not Lease.GROUP
    assert wanted in (None, verdict.lease)
    assert list(verdict.refused) == leases[:place]
    assert all(verdict.refused.values())


@given(feature_sets)
def test_nothing_better_than_the_chosen_lease_was_possible(offered: Feature) -> None:
    offered |= REQUIRED
    chosen = negotiate(offered, None).lease
    without_groups = [rung for rung in LADDER if rung.lease is not Lease.GROUP]
    possible = [rung.lease for rung in without_groups if rung.needs in offered]
    assert chosen is possible[0]


def test_a_group_lease_needs_a_kernel_that_carries_the_series() -> None:
    with pytest.raises(NotPossibleError, match="SQE-group"):
        negotiate(LINUX_7_2, Lease.GROUP)
    verdict = negotiate(LINUX_6_12, None, groups=True)
    assert verdict.lease is Lease.GROUP
    assert Feature.SUPPORT_ZERO_COPY in verdict.flags  # which such a kernel hides until asked


def test_no_partition_scan_is_a_flag_or_a_refusal() -> None:
    assert Feature.NO_AUTO_PART_SCAN in negotiate(LINUX_7_2, None, partscan=False).flags
    assert Feature.NO_AUTO_PART_SCAN not in negotiate(LINUX_7_2, None).flags
    with pytest.raises(NotPossibleError, match="NO_AUTO_PART_SCAN") as caught:
        negotiate(LINUX_6_12, None, partscan=False)
    assert "7.0" in caught.value.hint


def test_what_was_given_must_hold_what_was_asked() -> None:
    asked = Features(Lease.AUTO, Feature.AUTO_BUF_REG | Feature.USER_COPY | REQUIRED)
    granted(asked, LINUX_7_2)
    granted(asked, asked.flags)
    with pytest.raises(NotPossibleError, match="AUTO_BUF_REG") as caught:
        granted(asked, asked.flags & ~Feature.AUTO_BUF_REG)
    assert "USER_COPY" not in caught.value.message
    assert "--lease copy" in caught.value.hint


def test_flags_have_names_and_unknown_bits_have_numbers() -> None:
    assert names(Feature(0)) == []
    assert names(Feature.SUPPORT_ZERO_COPY) == ["SUPPORT_ZERO_COPY"]
    assert names(Feature(1 << 63 | 1 << 50) | Feature.QUIESCE) == ["QUIESCE", "bit 50", "bit 63"]
    assert not any(name.startswith("bit") for name in names(LINUX_7_2))


@given(feature_sets)
def test_every_bit_is_named_once(offered: Feature) -> None:
    told = names(offered)
    assert len(told) == len(set(told)) == int(offered).bit_count()


def test_every_lease_is_on_the_ladder_and_known_to_the_core() -> None:
    assert {rung.lease for rung in LADDER} == set(Lease)
    assert len({lease.number for lease in Lease}) == len(Lease)
    assert any(not rung.needs for rung in LADDER), "some lease must always be possible"


IN_MEMORY = {Lease.COPY, Lease.USER_COPY}


@given(offered=feature_sets, wanted=wishes, groups=st.booleans())
def test_a_target_that_needs_the_bytes_in_memory_is_lent_nothing(
    offered: Feature, wanted: Lease | None, groups: bool
) -> None:
    try:
        verdict = negotiate(offered, wanted, groups=groups, in_memory=True)
    except NotPossibleError as error:
        if wanted not in (None, *IN_MEMORY) and REQUIRED in offered:
            assert "the target works on bytes in memory" in str(error)
        return
    assert verdict.lease in IN_MEMORY
    assert wanted in (None, verdict.lease)
    assert not verdict.flags & Feature.SUPPORT_ZERO_COPY
    for lease in (Lease.AUTO, Lease.REGISTER, Lease.GROUP):
        assert "in memory" in verdict.refused[lease]


def test_bytes_in_memory_are_copied_by_the_driver_unless_told_otherwise() -> None:
    assert negotiate(LINUX_7_2, None, in_memory=True).lease is Lease.COPY
    assert negotiate(LINUX_7_2, Lease.USER_COPY, in_memory=True).lease is Lease.USER_COPY
    assert negotiate(LINUX_7_2, None).lease is Lease.AUTO


@pytest.mark.parametrize("wanted", [Lease.AUTO, Lease.REGISTER, Lease.GROUP])
def test_insisting_on_lent_pages_for_bytes_in_memory_is_refused(wanted: Lease) -> None:
    with pytest.raises(NotPossibleError, match="works on bytes in memory") as caught:
        negotiate(LINUX_7_2, wanted, groups=True, in_memory=True)
    assert caught.value.hint


# --- recovery -------------------------------------------------------------------------------

RECOVERABLE = {
    Recovery.NONE: Feature(0),
    Recovery.QUEUE: Feature.USER_RECOVERY,
    Recovery.REISSUE: Feature.USER_RECOVERY | Feature.USER_RECOVERY_REISSUE,
    Recovery.FAIL: Feature.USER_RECOVERY | Feature.USER_RECOVERY_FAIL_IO,
}
ALL_OF_IT = RECOVERABLE[Recovery.REISSUE] | RECOVERABLE[Recovery.FAIL] | Feature.QUIESCE


@pytest.mark.parametrize("kind", Recovery)
def test_a_recovery_becomes_its_flags_and_is_read_from_them_again(kind: Recovery) -> None:
    verdict = negotiate(LINUX_7_2, Lease.COPY, recovery=kind, recovery_default=Recovery.QUEUE)
    assert verdict.recovery is kind
    assert verdict.recovery_reason == f"--recovery {kind.value} was asked for"
    quiesce = Feature(0) if kind is Recovery.NONE else Feature.QUIESCE
    assert verdict.flags & ALL_OF_IT == RECOVERABLE[kind] | quiesce
    assert recovery_of(verdict.flags) is kind


@pytest.mark.parametrize("kind", Recovery)
def test_without_a_wish_it_is_the_targets_or_none_with_the_reason(kind: Recovery) -> None:
    assert negotiate(LINUX_7_2, None, recovery_default=kind).recovery is kind
    bare = negotiate(LINUX_7_2 & ~ALL_OF_IT, None, recovery_default=kind)
    assert bare.recovery is Recovery.NONE
    assert not bare.flags & ALL_OF_IT
    assert ("lacks USER_RECOVERY" in bare.recovery_reason) == (kind is not Recovery.NONE)


def test_to_insist_on_a_recovery_that_the_driver_lacks_is_not_possible_here() -> None:
    with pytest.raises(NotPossibleError, match="lacks USER_RECOVERY_FAIL_IO") as caught:
        negotiate(LINUX_6_12, None, recovery=Recovery.FAIL)
    assert caught.value.exit_code == 3
    assert "--recovery" in caught.value.hint
    verdict = negotiate(LINUX_6_12, None, recovery=Recovery.REISSUE)
    assert not verdict.flags & Feature.QUIESCE


@pytest.mark.parametrize("rung", LADDER)
def test_a_devices_lease_is_known_by_its_flags_and_what_is_remembered(rung: Rung) -> None:
    flags = rung.needs | rung.asks | REQUIRED | ALL_OF_IT
    assert lease_of(flags, rung.lease.value) is rung.lease
    # what was remembered may be wrong, and of a group there is no other sign
    believed = Lease.REGISTER if rung.lease is Lease.GROUP else rung.lease
    assert lease_of(flags, "nonsense") is believed


def test_flags_of_no_lease_are_none() -> None:
    assert lease_of(REQUIRED | Feature.AUTO_BUF_REG, "auto") is None


def test_a_probe_that_fails_for_a_shortage_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"lease_probe_group": lambda: -errno.ENOMEM}
    monkeypatch.setattr(features, "lib", SimpleNamespace(**answers))
    with pytest.raises(UblkdError, match="lease group is possible: cannot allocate") as caught:
        groups(Lease.GROUP)
    assert caught.value.exit_code == 1
    assert not groups()
    answers["lease_probe_group"] = lambda: -errno.EPERM
    monkeypatch.setattr(features, "lib", SimpleNamespace(**answers))
    assert not groups(Lease.GROUP)
