/* SPDX-License-Identifier: MIT */
#include "links.h"

#include <stdlib.h>
#include <unistd.h>

#include "links_impl.h"
#include "own.h"

struct nbd *nbd_new(const struct nbd_config *cfg)
{
	struct nbd *n;

	if (!cfg->nr_links || cfg->nr_links > NBD_MAX_LINKS)
		return NULL;
	n = calloc(1, sizeof(*n));
	if (!n)
		return NULL;
	if (pthread_mutex_init(&n->lock, NULL)) {
		free(n);
		return NULL;
	}
	n->cfg = *cfg;
	n->socket = cfg->journal_bytes ? NBD_JOURNAL + 1 : NBD_JOURNAL;
	if (cfg->journal_bytes) {
		n->journal = journal_new(cfg->journal_bytes);
		if (!n->journal) {
			nbd_free(n);
			return NULL;
		}
	}
	for (uint32_t i = 0; i < cfg->nr_links; i++) {
		n->links[i].disk = n;
		n->links[i].inbox.fd = -1;
		n->links[i].next_fd = -1;
	}
	return n;
}

void nbd_free(struct nbd *n)
{
	for (uint32_t i = 0; i < n->cfg.nr_links; i++)
		if (n->links[i].own) /* its ring broke and may still use it */
			return;
	for (uint32_t i = 0; i < n->cfg.nr_links; i++) {
		if (n->links[i].inbox.fd >= 0)
			close(n->links[i].inbox.fd);
		if (n->links[i].next_fd >= 0)
			close(n->links[i].next_fd);
	}
	journal_free(n->journal);
	pthread_mutex_destroy(&n->lock);
	free(n);
}

/* The inbox has something new; the lock is held. */
void link_wake(const struct link *l)
{
	if (l->own)
		own_wake(l->own);
}

/*
 * The keeper's wish: another descriptor, or none, in the place of one that
 * nobody has taken.
 */
static void wish(struct nbd *n, uint32_t link, const struct inbox *new)
{
	struct link *l = &n->links[link];
	int before;

	pthread_mutex_lock(&n->lock);
	before = l->inbox.fd;
	if (before >= 0)
		l->told.attached++;
	l->inbox.fd = new->fd;
	l->inbox.breaks |= new->breaks;
	l->inbox.fails = new->fails || (l->inbox.fails && new->fd < 0);
	link_wake(l);
	pthread_mutex_unlock(&n->lock);
	if (before >= 0)
		close(before);
}

void nbd_attach(struct nbd *n, uint32_t link, int fd)
{
	wish(n, link, &(struct inbox){ .fd = fd });
}

void nbd_break(struct nbd *n, uint32_t link)
{
	wish(n, link, &(struct inbox){ .fd = -1, .breaks = true });
}

void nbd_fail(struct nbd *n, uint32_t link)
{
	wish(n, link, &(struct inbox){ .fd = -1, .fails = true });
}

/* Each link looks once more at what it waits for. */
static void wake_all(struct nbd *n)
{
	pthread_mutex_lock(&n->lock);
	for (uint32_t i = 0; i < n->cfg.nr_links; i++)
		link_wake(&n->links[i]);
	pthread_mutex_unlock(&n->lock);
}

void nbd_stopping(struct nbd *n, bool is)
{
	__atomic_store_n(&n->stopping, is, __ATOMIC_SEQ_CST);
	wake_all(n);
}

void nbd_limits(struct nbd *n, uint64_t timeout_ns, uint64_t window_ns)
{
	__atomic_store_n(&n->cfg.timeout_ns, timeout_ns, __ATOMIC_RELAXED);
	__atomic_store_n(&n->cfg.window_ns, window_ns, __ATOMIC_RELAXED);
	wake_all(n);
}

void nbd_look(struct nbd *n, uint32_t link, struct nbd_status *out)
{
	struct link *l = &n->links[link];

	pthread_mutex_lock(&n->lock);
	*out = l->told;
	pthread_mutex_unlock(&n->lock);
	out->unanswered =
		__atomic_load_n(&l->told.unanswered, __ATOMIC_RELAXED);
	out->slow = __atomic_load_n(&l->told.slow, __ATOMIC_RELAXED);
	out->ended = __atomic_load_n(&l->told.ended, __ATOMIC_RELAXED);
}
