/* SPDX-License-Identifier: MIT */
#include "watch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int watch_init(struct watch *w, const struct fake_config *cfg,
	       const struct ublksrv_io_desc *iods)
{
	w->cfg = cfg;
	w->iods = iods;
	w->flights = calloc((size_t)cfg->depth * cfg->max_members + OWN_MEMBERS,
			    sizeof(*w->flights));
	w->tags = calloc(cfg->depth + 1U, sizeof(*w->tags));
	if (!w->flights || !w->tags)
		return -ENOMEM;
	for (uint16_t tag = 0; tag <= cfg->depth; tag++)
		w->tags[tag].flights =
			w->flights + (size_t)tag * cfg->max_members;
	return 0;
}

void watch_deinit(struct watch *w)
{
	free(w->log);
	free(w->tags);
	free(w->flights);
}

void watch_script(struct watch *w, struct outcome *outcomes, uint32_t n)
{
	w->outcomes = outcomes;
	w->nr_outcomes = n;
	w->nr_log = 0;
	w->completions = 0;
}

uint32_t watch_keep(struct watch *w, uint16_t tag, uint16_t member,
		    const struct io_uring_sqe *sqe)
{
	if (w->nr_log == w->room) {
		w->room = w->room ? 2 * w->room : 64;
		w->log = realloc(w->log, w->room * sizeof(*w->log));
		if (!w->log)
			abort();
	}
	w->log[w->nr_log] = (struct issued){
		.tag = tag,
		.member = member,
		.opcode = sqe->opcode,
		.flags = sqe->flags,
		.fd = sqe->fd,
		.off = sqe->off,
		.addr = sqe->addr,
		.len = sqe->len,
		.op_flags = (uint32_t)sqe->rw_flags,
		.addr3 = sqe->addr3,
		.ioprio = sqe->ioprio,
	};
	return w->nr_log++;
}
