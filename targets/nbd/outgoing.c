/* SPDX-License-Identifier: MIT */
/*
 * Requests that go out in one piece: those without data, and small writes
 * with a copy of theirs. A few kilobytes are copied faster than they are
 * sent by themselves, and the server is woken once for all of them.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "group.h"
#include "links_impl.h"
#include "own.h"

#define OUT_BYTES (256U << 10) /* what is never used costs nothing */

int link_new_outgoing(struct link *l)
{
	for (int i = 0; i < 2; i++) {
		l->out[i] = (struct outgoing){ .bytes = malloc(OUT_BYTES) };
		if (!l->out[i].bytes)
			return -ENOMEM;
	}
	return 0;
}

void link_free_outgoing(struct link *l)
{
	for (int i = 0; i < 2; i++) {
		free(l->out[i].bytes);
		l->out[i].bytes = NULL;
	}
}

const void *link_gather(struct link *l, const struct group *g,
			const struct nbd_request *request, uint32_t bytes)
{
	struct outgoing *o = &l->out[l->filling];
	uint8_t *at = o->bytes + o->used;
	uint8_t *data = at + sizeof(*request);

	if (sizeof(*request) + bytes > OUT_BYTES - o->used)
		return NULL;
	if (bytes && group_copy(g, data, bytes) < 0)
		return NULL;
	memcpy(at, request, sizeof(*request));
	o->used += (uint32_t)sizeof(*request) + bytes;
	return data;
}

void link_send_gathered(struct link *l)
{
	const struct outgoing *o = &l->out[l->filling];

	if (l->sending || !o->used)
		return;
	l->sending = !own_send(l->own, OWN_GATHERED, l->disk->socket, o->bytes,
			       o->used, 0);
	if (!l->sending) {
		link_lose(l, NBD_LOST_SOCKET, -ECONNRESET);
		return;
	}
	l->filling ^= 1;
	l->out[l->filling].used = 0;
}

void link_on_gathered(struct link *l, int res)
{
	l->sending = false;
	if (res < 0)
		link_lose(l, NBD_LOST_SOCKET, res);
	link_send_gathered(l);
	link_try_again(l);
	link_look_again(l);
}
