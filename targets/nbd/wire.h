/* SPDX-License-Identifier: MIT */
/* NBD on the wire, big-endian. Source: doc/proto.md of the NBD project. */
#ifndef UBLKD_NBD_WIRE_H
#define UBLKD_NBD_WIRE_H

#include <stdbool.h>
#include <stdint.h>

#define NBD_REQUEST_MAGIC 0x25609513U
#define NBD_REPLY_MAGIC 0x67446698U

enum nbd_command {
	NBD_READ = 0,
	NBD_WRITE = 1,
	NBD_DISC = 2,
	NBD_FLUSH = 3,
	NBD_TRIM = 4,
	NBD_WRITE_ZEROES = 6,
};

/* What a server that forgets, or does it late, does harm with. */
static inline bool nbd_changes(uint16_t command)
{
	return command == NBD_WRITE || command == NBD_TRIM ||
	       command == NBD_WRITE_ZEROES;
}

#define NBD_FLAG_FUA (1U << 0)
#define NBD_FLAG_NO_HOLE (1U << 1)

/* The protocol's numbers, whatever this machine's are. */
enum nbd_error {
	NBD_EIO = 5,
	NBD_ENOSPC = 28,
	NBD_ENOTSUP = 95,
	NBD_ESHUTDOWN = 108,
};

struct nbd_request {
	uint32_t magic;
	uint16_t flags;
	uint16_t command;
	uint64_t cookie;
	uint64_t offset; /* bytes, as is: */
	uint32_t length;
} __attribute__((packed));

struct nbd_reply {
	uint32_t magic;
	uint32_t error;
	uint64_t cookie;
} __attribute__((packed));

#endif
