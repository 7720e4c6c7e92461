/* SPDX-License-Identifier: MIT */
/* What the generated boundary includes. */
#include <sys/mman.h>
#include <sys/prctl.h>

#include "backing.h"
#include "control.h"
#include "faulty.h"
#include "group.h"
#include "lease.h"
#include "loop.h"
#include "mirror.h"
#include "nbd/links.h"
#include "null.h"
#include "queue.h"
#include "stats.h"
#include "stripe.h"
#include "uapi.h"
