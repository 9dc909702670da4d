/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * KUnit tests of the per-route neighbour override: packets are sent by
 * ip_output() on a route with an override, to a device that keeps the frames.
 */
#ifndef _NEIGH_OVERRIDE_TEST_H
#define _NEIGH_OVERRIDE_TEST_H

#include <kunit/test.h>
#include <linux/if_ether.h>
#include <linux/skbuff.h>
#include <net/ip_fib.h>
#include <net/neigh_override.h>
#include <net/route.h>

#define NOV_GW4		htonl(0xc0000201)	/* 192.0.2.1 */
#define NOV_SADDR	htonl(0xc0000202)	/* 192.0.2.2 */
#define NOV_DADDR	htonl(0xcb007101)	/* 203.0.113.1 */

extern const struct in6_addr nov_gw6;		/* 2001:db8::1 */

/* Whose link-layer address it is: the last byte of 02:00:00:00:00:xx */
enum nov_who {
	NOV_NOBODY,
	NOV_DEVICE,
	NOV_DST,		/* neighbour NOV_DADDR */
	NOV_GATEWAY4,
	NOV_GATEWAY6,
	NOV_LLADDR,
	NOV_OTHER,
	NOV_VIA4,
	NOV_VIA6,
	NOV_ABSENT4,		/* no entry for this neighbour */
	NOV_ABSENT6,
	NOV_SOURCE,
};

/* A nexthop and its override */
struct nov_conf {
	u8 gw_family;
	u8 lladdr;		/* enum nov_who */
	u8 via;
	u8 src;
	bool rta_via;		/* by RTA_VIA instead of the nest */
};

/* A route and what comes of it */
struct nov_route_case {
	const char *desc;
	/* input */
	struct nov_conf conf;
	/* output as expected */
	u8 dst, src;		/* of the frame */
	u8 neigh;		/* that packets go to, if any */
	bool next_hop;		/* before the packet's destination */
	bool needs_packet;	/* to tell the neighbour */
};

/* What can change under a route, or between two looks at its device */
struct nov_change_case {
	const char *desc;
	/* input */
	struct nov_conf conf;
	unsigned int headroom;
	unsigned char addr_len;
	bool no_header;		/* the device refuses to make one */
	bool no_ip;		/* the device makes no neighbours */
	/* output as expected */
	enum skb_drop_reason reason;
};

/* Two nexthops to compare */
struct nov_pair_case {
	const char *desc;
	/* input */
	struct nov_conf a, b;
	/* output as expected */
	bool equal;
};

struct nov_dev {
	struct sk_buff_head frames;	/* IPv4 only */
	unsigned int arps;
	u8 arp_sha[ETH_ALEN];		/* of the last one */
	__be32 arp_sip;
	bool noref;			/* the last frame's route */
	bool no_header;
};

struct nov_test {
	struct net_device *dev;
	struct rtable *rt;
	struct fib_nh_common nhc;	/* of the route */
	struct fib_nh_common other;	/* to compare it with */
	const struct sk_buff *skb;	/* the packet last made */
	bool dropped;			/* it was */
	enum skb_drop_reason reason;
};

int nov_suite_init(struct kunit_suite *suite);
int nov_init(struct kunit *test);
void nov_exit(struct kunit *test);

void nov_make_nhc(struct kunit *test, struct fib_nh_common *nhc,
		  const struct nov_conf *conf);
void nov_make_route(struct kunit *test, const struct nov_conf *conf);
bool nov_key_is_off(void);

struct neighbour *nov_neigh_of(struct kunit *test, u8 who);
void nov_set_state(struct kunit *test, u8 who, u8 state);
void nov_answer(struct kunit *test, u8 who, u8 lladdr);
void nov_expect_neigh(struct kunit *test, struct neighbour *n, u8 who);

struct sk_buff *nov_packet(struct kunit *test, unsigned int headroom);
void nov_expect_frame(struct kunit *test, u8 dst, u8 src);
void nov_expect_nothing(struct kunit *test);
void nov_expect_drop(struct kunit *test, enum skb_drop_reason reason);

/* Tests; parameter: struct nov_route_case */
void nov_test_send(struct kunit *test);
void nov_test_neigh_lookup(struct kunit *test);
void nov_test_confirm_neigh(struct kunit *test);
/* struct nov_change_case */
void nov_test_change(struct kunit *test);
/* struct nov_pair_case */
void nov_test_compare(struct kunit *test);

#endif /* _NEIGH_OVERRIDE_TEST_H */
