/* SPDX-License-Identifier: MIT */
/* What the generated boundary includes. */
#include "control.h"
#include "loop.h"
#include "null.h"
#include "queue.h"
#include "stats.h"
#include "uapi.h"
