// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * KUnit tests of the per-route neighbour override: the device, its neighbours,
 * the route, packets and frames.
 */

#include <linux/etherdevice.h>
#include <linux/ip.h>
#include <linux/nexthop.h>
#include <linux/rtnetlink.h>
#include <net/arp.h>
#include <net/ip.h>
#include <net/ndisc.h>
#include <net/netlink.h>
#include <trace/events/skb.h>
#include <uapi/linux/neigh_override.h>
#include "neigh_override_test.h"

#define NOV_IN6(last)	{ { { 0x20, 0x01, 0x0d, 0xb8, [15] = (last) } } }

const struct in6_addr nov_gw6 = NOV_IN6(1);
static const struct in6_addr nov_via6 = NOV_IN6(9);
static const struct in6_addr nov_absent6 = NOV_IN6(0x99);
static const __be32 nov_daddr = NOV_DADDR, nov_gw4 = NOV_GW4;
static const __be32 nov_via4 = htonl(0xc0000209);	/* 192.0.2.9 */
static const __be32 nov_absent4 = htonl(0xc0000263);	/* 192.0.2.99 */
static const __be32 nov_saddr = NOV_SADDR, nov_router = NOV_ROUTER;

/* The neighbours; NUD_PERMANENT from the start, but for those absent */
static const struct {
	struct neigh_table *tbl;
	const void *addr;
	bool absent;
} nov_neighs[] = {
	[NOV_DST]	= { &arp_tbl, &nov_daddr },
	[NOV_GATEWAY4]	= { &arp_tbl, &nov_gw4 },
	[NOV_GATEWAY6]	= { &nd_tbl, &nov_gw6 },
	[NOV_VIA4]	= { &arp_tbl, &nov_via4 },
	[NOV_VIA6]	= { &nd_tbl, &nov_via6 },
	[NOV_ABSENT4]	= { &arp_tbl, &nov_absent4, true },
	[NOV_ABSENT6]	= { &nd_tbl, &nov_absent6, true },
	[NOV_OWNER]	= { &arp_tbl, &nov_saddr, true },
	[NOV_ROUTER4]	= { &arp_tbl, &nov_router, true },
};

static void nov_lladdr(u8 *lladdr, u8 who)
{
	const u8 addr[ETH_ALEN] = { 0x02, [5] = who };

	ether_addr_copy(lladdr, addr);
	if (who == NOV_MULTICAST)
		lladdr[0] |= 1;
}

/* The device */

static netdev_tx_t nov_xmit(struct sk_buff *skb, struct net_device *dev)
{
	struct nov_dev *priv = netdev_priv(dev);
	struct arphdr *arp;

	if (eth_hdr(skb)->h_proto == htons(ETH_P_IP)) {
		skb_queue_tail(&priv->frames, skb);
		return NETDEV_TX_OK;
	}
	if (eth_hdr(skb)->h_proto == htons(ETH_P_ARP)) {
		arp = arp_hdr(skb);
		priv->arps++;
		memcpy(priv->arp_sha, arp + 1, ETH_ALEN);
		memcpy(&priv->arp_sip, (u8 *)(arp + 1) + ETH_ALEN,
		       sizeof(priv->arp_sip));
	}
	consume_skb(skb);
	return NETDEV_TX_OK;
}

static const struct net_device_ops nov_netdev_ops = {
	.ndo_start_xmit		= nov_xmit,
};

static int nov_header(struct sk_buff *skb, struct net_device *dev,
		      unsigned short type, const void *daddr,
		      const void *saddr, unsigned int len)
{
	struct nov_dev *priv = netdev_priv(dev);

	if (priv->no_header)
		return -EINVAL;
	if (type == ETH_P_IP)
		priv->noref = skb_dst_is_noref(skb);
	return eth_header(skb, dev, type, daddr, saddr, len);
}

static const struct header_ops nov_header_ops = {
	.create			= nov_header,
	.cache			= eth_header_cache,
	.cache_update		= eth_header_cache_update,
};

static void nov_dev_setup(struct net_device *dev)
{
	struct nov_dev *priv = netdev_priv(dev);
	u8 lladdr[ETH_ALEN];

	skb_queue_head_init(&priv->frames);
	ether_setup(dev);
	dev->netdev_ops = &nov_netdev_ops;
	dev->header_ops = &nov_header_ops;
	dev->priv_flags |= IFF_NO_QUEUE;
	nov_lladdr(lladdr, NOV_DEVICE);
	eth_hw_addr_set(dev, lladdr);
}

struct net_device *nov_add_dev(struct kunit *test)
{
	struct net_device *dev;

	dev = alloc_netdev(sizeof(struct nov_dev), "nov%d", NET_NAME_ENUM,
			   nov_dev_setup);
	KUNIT_ASSERT_NOT_NULL(test, dev);

	rtnl_lock();
	KUNIT_EXPECT_EQ(test, 0, register_netdevice(dev));
	KUNIT_EXPECT_EQ(test, 0, dev_open(dev, NULL));
	rtnl_unlock();
	return dev;
}

static void nov_remove_dev(struct net_device *dev)
{
	struct nov_dev *priv = netdev_priv(dev);

	skb_queue_purge(&priv->frames);
	unregister_netdev(dev);
	free_netdev(dev);
}

/* Neighbours */

static bool nov_is_present(u8 who)
{
	return nov_neighs[who].tbl && !nov_neighs[who].absent;
}

void nov_add_neigh(struct kunit *test, u8 who)
{
	struct nov_test *ctx = test->priv;
	u8 lladdr[ETH_ALEN];
	struct neighbour *n;

	n = neigh_create(nov_neighs[who].tbl, nov_neighs[who].addr, ctx->dev);
	KUNIT_ASSERT_FALSE(test, IS_ERR(n));
	nov_lladdr(lladdr, who);
	KUNIT_EXPECT_EQ(test, 0, neigh_update(n, lladdr, NUD_PERMANENT,
					      NEIGH_UPDATE_F_OVERRIDE |
					      NEIGH_UPDATE_F_ADMIN, 0));
	neigh_release(n);
}

/* A reference to the entry of @who */
struct neighbour *nov_neigh_of(struct kunit *test, u8 who)
{
	struct nov_test *ctx = test->priv;
	struct neighbour *n;

	n = neigh_lookup(nov_neighs[who].tbl, nov_neighs[who].addr, ctx->dev);
	KUNIT_ASSERT_NOT_NULL(test, n);
	return n;
}

/* Whether it was confirmed lately, and not since this was asked last */
bool nov_take_confirmed(struct kunit *test, u8 who)
{
	struct neighbour *n = nov_neigh_of(test, who);
	bool confirmed = time_after(n->confirmed, jiffies - 30 * HZ);

	n->confirmed = jiffies - 60 * HZ;
	neigh_release(n);
	return confirmed;
}

/* Without a timer that changes the state meanwhile */
void nov_set_state(struct kunit *test, u8 who, u8 state)
{
	struct neighbour *n = nov_neigh_of(test, who);

	KUNIT_EXPECT_EQ(test, 0, neigh_update(n, NULL, state & NUD_VALID ?
					      NUD_STALE : state,
					      NEIGH_UPDATE_F_ADMIN, 0));
	write_lock_bh(&n->lock);
	WRITE_ONCE(n->nud_state, state);
	write_unlock_bh(&n->lock);
	neigh_release(n);
}

/* The neighbour answers, it has the address of @lladdr. */
void nov_answer(struct kunit *test, u8 who, u8 lladdr)
{
	struct neighbour *n = nov_neigh_of(test, who);
	u8 addr[MAX_ADDR_LEN] = {};

	nov_lladdr(addr, lladdr);
	KUNIT_EXPECT_EQ(test, 0, neigh_update(n, addr, NUD_REACHABLE,
					      NEIGH_UPDATE_F_OVERRIDE, 0));
	neigh_release(n);
}

/* @n, whose reference is dropped, is the entry of @who; none for NOV_NOBODY */
void nov_expect_neigh(struct kunit *test, struct neighbour *n, u8 who)
{
	KUNIT_EXPECT_EQ(test, !n, who == NOV_NOBODY);
	if (!n)
		return;
	KUNIT_EXPECT_PTR_EQ(test, n->tbl, nov_neighs[who].tbl);
	KUNIT_EXPECT_MEMEQ(test, n->primary_key, nov_neighs[who].addr,
			   n->tbl->key_len);
	neigh_release(n);
}

/* The route and its override */

static void nov_put_lladdr(struct kunit *test, struct sk_buff *msg, int type,
			   u8 who)
{
	u8 lladdr[ETH_ALEN];

	nov_lladdr(lladdr, who);
	KUNIT_EXPECT_EQ(test, 0, nla_put(msg, type, ETH_ALEN, lladdr));
}

static void nov_put_neigh(struct kunit *test, struct sk_buff *msg, u8 who)
{
	const struct neigh_table *tbl = nov_neighs[who].tbl;
	int type = tbl->family == AF_INET ? NEIGH_OVERRIDE_A_VIA4 :
					    NEIGH_OVERRIDE_A_VIA6;

	KUNIT_EXPECT_EQ(test, 0, nla_put(msg, type, tbl->key_len,
					 nov_neighs[who].addr));
}

struct nlattr *nov_put_via(struct kunit *test, struct sk_buff *msg, u8 who)
{
	struct nlattr *attr;
	struct rtvia *via;

	attr = nla_reserve(msg, RTA_VIA, sizeof(*via) + ETH_ALEN);
	KUNIT_ASSERT_NOT_NULL(test, attr);
	via = nla_data(attr);
	via->rtvia_family = AF_PACKET;
	nov_lladdr(via->rtvia_addr, who);
	return attr;
}

/* Make a nexthop, with its override if it is to have one. */
void nov_make_nhc(struct kunit *test, struct fib_nh_common *nhc,
		  const struct nov_conf *conf)
{
	struct nov_test *ctx = test->priv;
	struct fib_config cfg = { .fc_oif = ctx->dev->ifindex };
	struct nlattr *nest;
	struct sk_buff *msg;
	int err;

	*nhc = (struct fib_nh_common) {
		.nhc_dev = ctx->dev,
		.nhc_family = AF_INET,
		.nhc_gw_family = conf->gw_family,
		.nhc_scope = conf->gw_family ? RT_SCOPE_LINK : RT_SCOPE_HOST,
	};

	msg = nlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, msg);
	nest = nla_nest_start(msg, NHA_NEIGH_OVERRIDE);
	KUNIT_ASSERT_NOT_NULL(test, nest);
	if (conf->rta_via)
		cfg.fc_via_lladdr = nov_put_via(test, msg, conf->lladdr);
	else if (conf->lladdr)
		nov_put_lladdr(test, msg, NEIGH_OVERRIDE_A_LLADDR,
			       conf->lladdr);
	if (conf->via)
		nov_put_neigh(test, msg, conf->via);
	if (conf->src)
		nov_put_lladdr(test, msg, NEIGH_OVERRIDE_A_SRC_LLADDR,
			       conf->src);
	if (conf->flags)
		nla_put_u32(msg, NEIGH_OVERRIDE_A_FLAGS, conf->flags);
	nla_nest_end(msg, nest);
	if (!conf->rta_via && nla_len(nest))
		cfg.fc_neigh_override = nest;
	err = neigh_override_init(nhc, &cfg, NULL);
	kfree_skb(msg);
	KUNIT_ASSERT_EQ(test, 0, err);
	if (!nhc_neigh_override(nhc))
		return;

	rtnl_net_lock(&init_net);
	err = neigh_override_check(&init_net, nhc, RT_SCOPE_UNIVERSE, NULL);
	rtnl_net_unlock(&init_net);
	KUNIT_ASSERT_EQ(test, 0, err);
}

void nov_make_route(struct kunit *test, const struct nov_conf *conf)
{
	struct nov_test *ctx = test->priv;
	struct rtable *rt = ctx->rt;

	nov_make_nhc(test, &ctx->nhc, conf);
	rt_set_neigh_override(rt, nhc_neigh_override_get(&ctx->nhc));
	rt->rt_gw_family = conf->gw_family;
	rt->rt_uses_gateway = !!conf->gw_family;
	if (conf->gw_family == AF_INET)
		rt->rt_gw4 = NOV_GW4;
	else if (conf->gw_family == AF_INET6)
		rt->rt_gw6 = nov_gw6;
}

/* References are dropped in RCU callbacks, the key is switched by work. */
bool nov_key_is_off(void)
{
	rcu_barrier();
	static_key_deferred_flush(&neigh_override_used);
	return !neigh_override_in_use();
}

void nov_expect_count(struct kunit *test, int type, u64 want)
{
	struct nov_test *ctx = test->priv;
	struct neigh_override_mib *mib;
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu) {
		mib = per_cpu_ptr(nhc_neigh_override(&ctx->nhc)->stats, cpu);
		sum += mib->mibs[type];
	}
	KUNIT_EXPECT_EQ_MSG(test, sum, want, "counter %d", type);
}

/* Packets and frames */

struct sk_buff *nov_packet(struct kunit *test, unsigned int headroom)
{
	struct nov_test *ctx = test->priv;
	struct sk_buff *skb;
	struct iphdr *iph;

	skb = alloc_skb(headroom + sizeof(*iph) + 64, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, skb);
	skb_reserve(skb, headroom);
	skb_reset_network_header(skb);
	iph = skb_put_zero(skb, sizeof(*iph));
	iph->version = 4;
	iph->ihl = sizeof(*iph) / 4;
	iph->ttl = 64;
	iph->saddr = NOV_SADDR;
	iph->daddr = NOV_DADDR;
	iph->tot_len = htons(skb->len);
	ip_send_check(iph);
	skb->protocol = htons(ETH_P_IP);
	skb->dev = ctx->dev;
	skb_dst_set(skb, dst_clone(&ctx->rt->dst));

	ctx->skb = skb;
	ctx->dropped = false;
	return skb;
}

/* One frame has been sent, from @src to @dst. */
void nov_expect_frame(struct kunit *test, u8 dst, u8 src)
{
	struct nov_test *ctx = test->priv;
	struct nov_dev *priv = netdev_priv(ctx->dev);
	struct sk_buff *skb = skb_dequeue(&priv->frames);
	struct ethhdr want, *eth;
	struct iphdr *iph;

	KUNIT_ASSERT_NOT_NULL_MSG(test, skb, "no frame was sent");
	nov_expect_nothing(test);

	nov_lladdr(want.h_dest, dst);
	nov_lladdr(want.h_source, src);
	want.h_proto = htons(ETH_P_IP);
	eth = (struct ethhdr *)skb->data;
	KUNIT_EXPECT_MEMEQ(test, eth, &want, ETH_HLEN);

	KUNIT_EXPECT_EQ(test, skb->len, ETH_HLEN + sizeof(*iph));
	iph = (struct iphdr *)(eth + 1);
	KUNIT_EXPECT_EQ(test, iph->daddr, NOV_DADDR);
	consume_skb(skb);
}

void nov_expect_nothing(struct kunit *test)
{
	struct nov_test *ctx = test->priv;
	struct nov_dev *priv = netdev_priv(ctx->dev);

	KUNIT_EXPECT_TRUE_MSG(test, skb_queue_empty(&priv->frames),
			      "a frame was sent");
	KUNIT_EXPECT_FALSE_MSG(test, ctx->dropped, "the packet was dropped");
}

/* The packet last made was dropped. */
void nov_expect_drop(struct kunit *test, enum skb_drop_reason reason)
{
	struct nov_test *ctx = test->priv;

	KUNIT_EXPECT_TRUE_MSG(test, ctx->dropped, "the packet was not dropped");
	KUNIT_EXPECT_EQ(test, ctx->reason, reason);
	ctx->dropped = false;
	nov_expect_nothing(test);
}

static void nov_note_drop(void *data, struct sk_buff *skb, void *location,
			  enum skb_drop_reason reason,
			  const struct sock *rx_sk)
{
	struct nov_test *ctx = data;

	if (skb != ctx->skb)
		return;
	ctx->dropped = true;
	ctx->reason = reason;
}

/* Tests of routes and nexthops */

/* ip_output() makes room for the header where there is none. */
void nov_test_send(struct kunit *test)
{
	const struct nov_route_case *c = test->param_value;

	nov_make_route(test, &c->conf);
	ip_output(&init_net, NULL, nov_packet(test, LL_MAX_HEADER));
	nov_expect_frame(test, c->dst, c->src);
	ip_output(&init_net, NULL, nov_packet(test, 0));
	nov_expect_frame(test, c->dst, c->src);
}

void nov_test_neigh_lookup(struct kunit *test)
{
	const struct nov_route_case *c = test->param_value;
	struct nov_test *ctx = test->priv;
	struct neighbour *n;
	struct sk_buff *skb;

	nov_make_route(test, &c->conf);
	KUNIT_EXPECT_EQ(test, c->next_hop, rt_has_next_hop(ctx->rt));

	n = dst_neigh_lookup(&ctx->rt->dst, &nov_daddr);
	nov_expect_neigh(test, n, c->needs_packet ? NOV_NOBODY : c->neigh);

	skb = nov_packet(test, 0);
	n = dst_neigh_lookup_skb(&ctx->rt->dst, skb);
	consume_skb(skb);
	nov_expect_neigh(test, n, c->neigh);
}

/* The neighbour that packets go to is confirmed, and no other. */
void nov_test_confirm_neigh(struct kunit *test)
{
	const struct nov_route_case *c = test->param_value;
	struct nov_test *ctx = test->priv;
	int who;

	nov_make_route(test, &c->conf);
	for (who = 0; who < ARRAY_SIZE(nov_neighs); who++)
		if (nov_is_present(who))
			nov_take_confirmed(test, who);

	dst_confirm_neigh(&ctx->rt->dst, &nov_daddr);

	for (who = 0; who < ARRAY_SIZE(nov_neighs); who++)
		if (nov_is_present(who))
			KUNIT_EXPECT_EQ_MSG(test, who == c->neigh,
					    nov_take_confirmed(test, who),
					    "neighbour %d", who);
}

/* Not by ip_output(), which takes care of the headroom */
void nov_test_change(struct kunit *test)
{
	const struct nov_change_case *c = test->param_value;
	struct nov_test *ctx = test->priv;
	struct nov_dev *priv = netdev_priv(ctx->dev);
	void *ip_ptr = rcu_access_pointer(ctx->dev->ip_ptr);
	struct sk_buff *skb;
	int err;

	nov_make_route(test, &c->conf);
	skb = nov_packet(test, c->headroom);

	priv->no_header = c->no_header;
	ctx->dev->addr_len = c->addr_len;
	if (c->no_ip)
		RCU_INIT_POINTER(ctx->dev->ip_ptr, NULL);
	rcu_read_lock();
	err = neigh_override_output(skb, &ctx->rt->dst,
				    rt_neigh_override(ctx->rt));
	rcu_read_unlock();
	rcu_assign_pointer(ctx->dev->ip_ptr, ip_ptr);
	ctx->dev->addr_len = ETH_ALEN;

	KUNIT_EXPECT_EQ(test, c->reason ? -EINVAL : 0, err);
	if (c->reason)
		nov_expect_drop(test, c->reason);
	KUNIT_EXPECT_EQ(test, !c->reason, skb_queue_len(&priv->frames));
	if (c->conf.flags)
		nov_expect_count(test, NEIGH_OVERRIDE_MIB_FAILED, !!c->reason);
}

void nov_test_compare(struct kunit *test)
{
	const struct nov_pair_case *c = test->param_value;
	struct nov_test *ctx = test->priv;

	nov_make_nhc(test, &ctx->nhc, &c->a);
	nov_make_nhc(test, &ctx->other, &c->b);
	KUNIT_EXPECT_EQ(test, c->equal,
			nhc_neigh_override_equal(&ctx->nhc, &ctx->other));
	/* Flags alone are not worth a hash of their own. */
	if (c->a.flags == c->b.flags)
		KUNIT_EXPECT_EQ(test, c->equal,
				nhc_neigh_override_hash(&ctx->nhc) ==
				nhc_neigh_override_hash(&ctx->other));
}

/* Suites */

/* Its address makes the local table, without which no address is unicast. */
int nov_suite_init(struct kunit_suite *suite)
{
	int err;

	rtnl_lock();
	err = dev_open(init_net.loopback_dev, NULL);
	rtnl_unlock();
	return err;
}

int nov_init(struct kunit *test)
{
	struct nov_test *ctx;
	int who;

	ctx = kunit_kzalloc(test, sizeof(*ctx), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, ctx);
	test->priv = ctx;
	ctx->dev = nov_add_dev(test);
	for (who = 0; who < ARRAY_SIZE(nov_neighs); who++)
		if (nov_is_present(who))
			nov_add_neigh(test, who);

	ctx->rt = rt_dst_alloc(ctx->dev, 0, RTN_UNICAST, true);
	KUNIT_ASSERT_NOT_NULL(test, ctx->rt);

	return register_trace_kfree_skb(nov_note_drop, ctx);
}

void nov_exit(struct kunit *test)
{
	struct nov_test *ctx = test->priv;

	if (!ctx || !ctx->dev)
		return;
	unregister_trace_kfree_skb(nov_note_drop, ctx);
	tracepoint_synchronize_unregister();

	if (ctx->rt)
		dst_release(&ctx->rt->dst);
	nov_remove_dev(ctx->dev);
	if (ctx->other_dev)
		nov_remove_dev(ctx->other_dev);
	neigh_override_put(nhc_neigh_override(&ctx->nhc));
	neigh_override_put(nhc_neigh_override(&ctx->other));

	/* The last override is gone, nothing pays any more. */
	KUNIT_EXPECT_TRUE(test, nov_key_is_off());
}

MODULE_DESCRIPTION("KUnit tests of the IPv4 neighbour override");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
