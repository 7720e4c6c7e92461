/* SPDX-License-Identifier: MIT */
/*
 * A file or block device behind a target, as backing.py has opened it: what
 * it can do besides reading and writing, and what it has refused.
 */
#ifndef UBLKD_TARGETS_BACKING_H
#define UBLKD_TARGETS_BACKING_H

#include <stdbool.h>
#include <stdint.h>

struct group;
struct ublksrv_io_desc;

/* One per device, shared by its queues. */
struct backing {
	bool block_device;
	/* learnt while serving: what it refused once */
	bool no_punch_hole;
	bool no_zero_range;
};

/* Members that one range may need: two ways to zero it, writing, fsync. */
#define BACKING_MAX_MEMBERS 4

/* What a write must carry for its request's FUA: RWF_DSYNC or nothing. */
uint32_t backing_write_flags(const struct ublksrv_io_desc *iod);

/* A DISCARD or WRITE_ZEROES of `len` bytes at `at` of fixed file `file`. */
int backing_discard(const struct backing *b, struct group *g, uint16_t file,
		    uint64_t at, uint64_t len);
int backing_write_zeroes(const struct backing *b, struct group *g,
			 uint16_t file, uint64_t at, uint64_t len);

/*
 * on_cqe() of a target with backings. WRITE_ZEROES only: a way that the
 * backing refuses is replaced by the next one, and FUA behind a fallocate is
 * an fsync.
 */
int backing_on_cqe(struct backing *b, struct group *g, unsigned int member,
		   int res);

/*
 * What direct I/O on `fd` asks for, in bytes, by STATX_DIOALIGN (6.1):
 * 0; -EOPNOTSUPP where the kernel does not say; -EINVAL where it says that
 * the file cannot do direct I/O.
 */
int backing_dio_align(int fd, uint32_t *mem, uint32_t *offset);

/* Whether a block device takes discards by io_uring (6.12): 0 or -errno. */
int backing_probe_discard(int fd);

/*
 * Whether the file can free a range: 0 or -errno. Asks beyond the end, so
 * nothing changes.
 */
int backing_probe_punch_hole(int fd, uint64_t beyond_end);

#endif
