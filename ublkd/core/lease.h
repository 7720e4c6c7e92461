/* SPDX-License-Identifier: MIT */
/*
 * How a request's pages are reached: the only file that knows how this
 * kernel lends them.
 */
#ifndef UBLKD_LEASE_H
#define UBLKD_LEASE_H

#include <stdbool.h>
#include <stdint.h>

#include "uapi.h"

struct member;
struct ring;

enum lease_kind {
	LEASE_AUTO, /* the driver puts the pages in buffer slot `tag` */
	LEASE_REGISTER,
	LEASE_GROUP,
	LEASE_COPY, /* the driver copies to and from a buffer of ours */
	LEASE_USER_COPY, /* we copy, by pread and pwrite on /dev/ublkcN */
};

/* One request's lease. */
struct lease {
	bool lent; /* pages are in the table; else bytes are in memory */
	bool ours; /* and we put them there, so we take them out */
	bool led; /* each member has a leader that lends it the pages */
	bool user_copy; /* and we carry them there and back */
};

/* What all leases of one queue have in common. */
struct lease_table {
	enum lease_kind kind;
	struct ring *ring;
	int dev_fd; /* /dev/ublkcN; fixed file 0 of the ring */
	uint16_t qid;
	uint32_t slots; /* buffer table entries; tags beyond fall back */
	uint32_t max_io; /* bytes */
	bool fixed_streams; /* SEND and RECV take lent pages: lane_probe() */
	/*
	 * `depth` buffers of max_io bytes, touched only when used: the
	 * copies' memory, and what an `auto` request falls back to.
	 */
	unsigned char *arena;
	uint64_t arena_bytes;
};

/* 0 or -errno. */
int lease_table_init(struct lease_table *t, uint16_t depth);
void lease_table_deinit(struct lease_table *t);

/* Completes a FETCH or COMMIT: where the next request's pages shall be. */
void lease_prep_fetch(const struct lease_table *t, uint16_t tag,
		      struct io_uring_sqe *sqe, struct ublksrv_io_cmd *cmd);

/*
 * A request is here. 0: its pages can be reached; LEASE_PENDING: they can
 * once the UD_LEND completion has been given to lease_lent(); or -errno.
 */
#define LEASE_PENDING 1
int lease_begin(struct lease_table *t, struct lease *l, uint16_t tag,
		const struct ublksrv_io_desc *iod);

/* Lending by hand was answered; 0 where the pages can be reached, or -errno. */
int lease_lent(struct lease_table *t, struct lease *l, uint16_t tag,
	       const struct ublksrv_io_desc *iod, int res);

/* Before the SQE of a member that carries data: its leader, if it needs one. */
void lease_lead(struct lease_table *t, const struct lease *l, uint16_t tag);

/* Points a READ or WRITE at `len` lent bytes from `buf` on. */
void lease_bind(const struct lease_table *t, const struct lease *l,
		uint16_t tag, struct io_uring_sqe *sqe, bool write,
		uint64_t buf, uint32_t len);

enum stream_op { STREAM_SEND, STREAM_SEND_ZC, STREAM_RECV };

/*
 * The same for a stream socket, with MSG_* flags. Where SEND and RECV do not
 * take lent pages, WRITE_FIXED and READ_FIXED do, and know no such flags.
 */
void lease_bind_stream(const struct lease_table *t, const struct lease *l,
		       uint16_t tag, struct io_uring_sqe *sqe,
		       enum stream_op op, uint64_t buf, uint32_t len,
		       uint32_t msg_flags);

/* The request's bytes where they are in memory of ours, else NULL. */
void *lease_memory(const struct lease_table *t, const struct lease *l,
		   uint16_t tag);

/* The first bytes of a WRITE, wherever they are, into memory: 0 or -errno. */
int lease_copy(const struct lease_table *t, const struct lease *l, uint16_t tag,
	       void *to, uint32_t len);

/*
 * The members are done and `filled` bytes are about to be committed: what
 * a READ put into memory goes to the request. Returns how many bytes
 * arrived, or -errno.
 */
int lease_end(struct lease_table *t, const struct lease *l, uint16_t tag,
	      bool is_read, uint32_t filled);

/* UNREGISTER, whose CQE has UD_UNLEND and comes only if it fails. */
void lease_take_back(struct lease_table *t, uint16_t tag);

/* Right before the commit: what was lent by hand is taken back. */
void lease_release(struct lease_table *t, const struct lease *l, uint16_t tag);

/*
 * Whether this kernel carries the SQE-group series: 1, 0, or -errno. Safe on
 * every kernel: two NOPs in a ring of their own.
 */
int lease_probe_group(void);

#endif
