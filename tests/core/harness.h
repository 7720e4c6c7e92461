/* SPDX-License-Identifier: MIT */
/*
 * A fake driver: it stands where queue.c and the kernel's ublk driver stand,
 * and begins requests, runs the ring and takes the commits.
 *
 * Between the engine and the kernel it looks at every SQE before it is
 * submitted. So a test may cut a transfer short for real, put an errno in
 * its place, and read afterwards what was issued; and an SQE that nobody
 * may ever issue is found in whatever test it appears. headers.py shows this
 * file to Python as it stands.
 */
#ifndef UBLKD_TESTS_HARNESS_H
#define UBLKD_TESTS_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "group.h"
#include "lease.h"
#include "own.h"
#include "stats.h"
#include "target.h"

/* --- the scripted target ----------------------------------------------- */

/*
 * One call of group_read(), group_write() and so on, by member_op; on a lane
 * `offset` is the address of memory in the place of the request's bytes.
 */
struct plan_member {
	uint8_t op;
	uint16_t file;
	uint32_t flags;
	uint32_t buf;
	uint64_t offset;
	uint64_t len;
	int added; /* out: what the call returned */
};

/* What submit() does for one tag. The memory stays the caller's. */
struct plan {
	struct plan_member *members;
	uint32_t nr_members;
	bool answers; /* calls group_complete(answer) after the members */
	int answer;
	int returns;
	uint32_t holds;
};

/* What on_cqe() does, once, the next time that `member` completes. */
struct reaction {
	uint16_t tag;
	uint16_t member;
	bool used;
	bool replaces; /* the result by `result` */
	int result;
	bool adds;
	struct plan_member add;
};

struct script {
	struct plan *plans; /* one per tag */
	struct reaction *reactions;
	uint32_t nr_reactions;
	uint32_t batches; /* out: calls of submit_all() */
};

/* The target of these is a struct script. */
const struct ublkd_target_ops *scripted_ops(void);

/* The same by submit_all(), and answered late. */
const struct ublkd_target_ops *batched_ops(void);

/* --- the fake driver --------------------------------------------------- */

enum outcome_kind {
	OUTCOME_PASS, /* the kernel does as it is told */
	OUTCOME_CUT, /* the kernel is asked for `value` bytes at most */
	OUTCOME_INSTEAD, /* nothing happens, and `value` is the result */
	OUTCOME_DENY, /* all of it happens, but no more than `value` is told */
};

/* In the place of a member: the commands about a request's pages. */
#define AT_LEND 0xffff /* REGISTER_IO_BUF */
#define AT_UNLEND 0xfffe /* UNREGISTER_IO_BUF */
#define AT_LEAD 0xfffd /* PROVIDE_IO_BUF, a leader */
#define AT_CANCEL 0xfffc /* of what the target has under way of its own */

/*
 * How one issue of a member ends. Each serves once, in order. A command does
 * nothing in any case: PASS or INSTEAD. What is told INSTEAD is told even
 * where success would be skipped, but for UNREGISTER.
 */
struct outcome {
	uint16_t tag;
	uint16_t member;
	bool used;
	uint8_t kind;
	int value;
};

/* One SQE as the engine made it, and how it ended. */
struct issued {
	uint16_t tag;
	uint16_t member;
	uint8_t opcode;
	uint8_t flags;
	int fd;
	uint64_t off;
	uint64_t addr;
	uint32_t len;
	uint32_t op_flags;
	uint64_t addr3;
	uint16_t ioprio;
	int res; /* what the engine was told */
	uint32_t order; /* of its completion, from 1; 0: none was seen */
};

struct fake_config {
	uint16_t depth;
	uint16_t max_members;
	uint32_t sqes;
	uint32_t max_io;
	uint32_t block;
	enum lease_kind lease;
	uint16_t qid;
	int dev_fd; /* stands for /dev/ublkcN in user copies */
	bool fixed_streams; /* SEND and RECV take lent pages */
	bool watch; /* look at SQEs; nothing is lent without */
	const int *files; /* fixed files 1, 2, ... */
	uint32_t nr_files;
	const struct ublkd_target_ops *ops;
	void *target;
};

struct fake;

/* 0 or -errno. The thread that makes it uses it. */
int fake_new(const struct fake_config *cfg, struct fake **out);
void fake_free(struct fake *f);

/* Replaces the script of outcomes and forgets what was issued. */
void fake_script(struct fake *f, struct outcome *outcomes, uint32_t n);

/* A request arrives; 0, or -EBUSY while its tag is served. */
int fake_begin(struct fake *f, uint16_t tag, uint32_t op_flags, uint64_t sector,
	       uint32_t sectors);

/* For answers from another thread. */
struct group *fake_group(struct fake *f, uint16_t tag);

/*
 * Every tag is answered once by each of `threads` (8 at most) while
 * fake_run() runs, whose word this returns.
 */
int fake_answer_all(struct fake *f, unsigned int threads, int answer);

/*
 * Runs turns until all requests are committed and nothing of them is in
 * flight: 0. What the target has under way of its own may stay so.
 * -ENODATA if one never will be, since nothing is in flight; -ETIME after
 * `turns` or five seconds; -EOVERFLOW if an SQE went by unseen; -EPROTO if
 * one broke a rule; else why the ring failed.
 */
int fake_run(struct fake *f, uint32_t turns);

/*
 * One turn: submits, waits `ns` at most, and takes what has completed: how
 * much that was, or as fake_run(). With 0 nothing is waited for.
 */
int fake_turn(struct fake *f, uint64_t ns);

/* Of a target with a part of its own: readable when there may be a turn. */
int fake_fd(const struct fake *f);

/*
 * The target's own part (own.h), which begins with fake_new(), ends: 0, or
 * -ETIME if something stays in flight. fake_free() does it, too.
 */
int fake_end(struct fake *f);

/* Whether it would wait for the target first; this asks as a queue does. */
bool fake_winds_up(const struct fake *f);

/* Members and commands in flight, the target's own ones among them. */
uint32_t fake_in_flight(const struct fake *f);

/* Which rule of issuing was broken first, or NULL. */
const char *fake_broken(const struct fake *f);

/* How many failures UD_UNLEND has reported, and the last one's errno. */
uint32_t fake_unlent(const struct fake *f, int *res);

/* What was committed for a tag's last request, and how often. */
int fake_result(const struct fake *f, uint16_t tag);
uint32_t fake_commits(const struct fake *f, uint16_t tag);

/* The request's pages, where they are memory: `max_io` bytes. */
unsigned char *fake_pages(struct fake *f, uint16_t tag);

struct group_env *fake_env(struct fake *f);
uint32_t fake_issued(const struct fake *f, const struct issued **out);

/* Whether every submission fails from here on. */
void fake_break_ring(struct fake *f, bool broken);

/* How C sees what Python has read from the headers. */
size_t size_of(const char *name);

#endif
