// SPDX-License-Identifier: GPL-2.0
/*
 * Loads, dumps, looks up and deletes many routes, for scripts/bench.
 *
 * bench_scale KIND NEXTHOPS ROUTES LOOKUPS DEVICE
 *
 * KIND is 'gateway', 'lladdr' or 'via4': nexthop objects that differ in this, and
 * routes to single addresses that share them evenly; 'both': objects that have
 * the same gateway and differ in the link-layer address; or 'route-gateway',
 * 'route-lladdr': routes without nexthop objects.  Prints, line by line, what was
 * done and the time stamp counter that it took; and the memory that it took.
 *
 * Netlink messages go to the kernel by the hundred, without acknowledgements:
 * what is counted is nearly all the kernel's work.
 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <linux/netlink.h>
#include <linux/nexthop.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <x86intrin.h>

/* <linux/neigh_override.h>; no base's nexthop.h has the first. */
#define NHA_NEIGH_OVERRIDE 19
#define NEIGH_OVERRIDE_A_VIA4 1
#define NEIGH_OVERRIDE_A_LLADDR 3

#define FIRST_GATEWAY 0xc6120002u	/* 198.18.0.2, RFC 2544 */
#define FIRST_DESTINATION 0x0a000000u	/* 10.0.0.0 */
#define BATCH 100
#define LOOKUPS_PER_CHANGE 10
#define LLADDR_LEN 6

enum kind { GATEWAY, LLADDR, VIA4, BOTH };

static char buffer[BATCH * 256] __attribute__((aligned(4)));
static char answer[1 << 18] __attribute__((aligned(4)));
static struct nlmsghdr *message;
static size_t filled;
static int batched, netlink, device;
static enum kind kind;
static int with_objects;

static uint64_t counter(void)
{
	_mm_lfence();
	return __rdtsc();
}

static void begin_message(int type, int flags, const void *header, size_t length)
{
	message = (struct nlmsghdr *)(buffer + filled);
	memset(message, 0, 256);
	message->nlmsg_type = type;
	message->nlmsg_flags = NLM_F_REQUEST | flags;
	message->nlmsg_len = NLMSG_LENGTH(length);
	memcpy(NLMSG_DATA(message), header, length);
}

static void add(int type, const void *data, size_t length)
{
	struct rtattr *attribute = (void *)((char *)message + NLMSG_ALIGN(message->nlmsg_len));

	attribute->rta_type = type;
	attribute->rta_len = RTA_LENGTH(length);
	memcpy(RTA_DATA(attribute), data, length);
	message->nlmsg_len = NLMSG_ALIGN(message->nlmsg_len) + RTA_SPACE(length);
}

static void add_number(int type, uint32_t number)
{
	add(type, &number, sizeof(number));
}

/* Read answers until the one that ends a dump or acknowledges; count the others. */
static size_t read_answers(void)
{
	size_t answers = 0;

	for (;;) {
		ssize_t length = recv(netlink, answer, sizeof(answer), 0);
		struct nlmsghdr *part = (void *)answer;

		if (length < 0)
			err(1, "recv");
		for (; NLMSG_OK(part, length); part = NLMSG_NEXT(part, length)) {
			if (part->nlmsg_type == NLMSG_ERROR) {
				errno = -((struct nlmsgerr *)NLMSG_DATA(part))->error;
				if (errno)
					err(1, "the kernel");
				return answers;
			}
			if (part->nlmsg_type == NLMSG_DONE)
				return answers;
			answers++;
		}
	}
}

static void flush(void)
{
	if (!batched)
		return;
	message->nlmsg_flags |= NLM_F_ACK;
	if (send(netlink, buffer, filled, 0) < 0)
		err(1, "send");
	read_answers();
	filled = 0;
	batched = 0;
}

static void end_message(void)
{
	filled += NLMSG_ALIGN(message->nlmsg_len);
	if (++batched == BATCH)
		flush();
}

static void make_lladdr(uint32_t number, unsigned char *lladdr)
{
	number = htonl(number);
	lladdr[0] = 2;
	lladdr[1] = 0;
	memcpy(lladdr + 2, &number, sizeof(number));
}

static void change_nexthop(uint32_t number, uint32_t which, int flags)
{
	struct nhmsg header = { .nh_family = AF_INET };
	unsigned char nest[RTA_SPACE(LLADDR_LEN)] = { 0 };
	struct rtattr *inner = (void *)nest;

	begin_message(RTM_NEWNEXTHOP, NLM_F_CREATE | flags, &header, sizeof(header));
	add_number(NHA_ID, number + 1);
	add_number(NHA_OIF, device);
	if (kind == GATEWAY)
		add_number(NHA_GATEWAY, htonl(FIRST_GATEWAY + which));
	if (kind == BOTH)
		add_number(NHA_GATEWAY, htonl(FIRST_GATEWAY));
	if (kind == LLADDR || kind == BOTH) {
		inner->rta_type = NEIGH_OVERRIDE_A_LLADDR;
		inner->rta_len = RTA_LENGTH(LLADDR_LEN);
		make_lladdr(which, RTA_DATA(inner));
		add(NHA_NEIGH_OVERRIDE | NLA_F_NESTED, nest, RTA_SPACE(LLADDR_LEN));
	} else if (kind == VIA4) {
		uint32_t address = htonl(FIRST_GATEWAY + which);

		inner->rta_type = NEIGH_OVERRIDE_A_VIA4;
		inner->rta_len = RTA_LENGTH(sizeof(address));
		memcpy(RTA_DATA(inner), &address, sizeof(address));
		add(NHA_NEIGH_OVERRIDE | NLA_F_NESTED, nest, RTA_SPACE(sizeof(address)));
	}
	end_message();
}

static void change_route(int type, uint32_t number, uint32_t which, int flags)
{
	struct rtmsg header = { .rtm_family = AF_INET, .rtm_dst_len = 32,
				.rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_BOOT,
				.rtm_type = RTN_UNICAST };
	struct {
		uint16_t family;
		unsigned char lladdr[LLADDR_LEN];
	} via = { .family = AF_PACKET };

	begin_message(type, flags, &header, sizeof(header));
	add_number(RTA_DST, htonl(FIRST_DESTINATION + number));
	if (type == RTM_NEWROUTE && with_objects) {
		add_number(RTA_NH_ID, which + 1);
	} else if (type == RTM_NEWROUTE) {
		add_number(RTA_OIF, device);
		make_lladdr(which, via.lladdr);
		if (kind == LLADDR)
			add(RTA_VIA, &via, sizeof(via));
		else
			add_number(RTA_GATEWAY, htonl(FIRST_GATEWAY + which));
	}
	end_message();
}

static void dump(int type, size_t expected)
{
	struct rtmsg header = { .rtm_family = AF_INET };
	size_t length = type == RTM_GETNEXTHOP ? sizeof(struct nhmsg) : sizeof(header);
	size_t answers;

	if (type == RTM_GETNEXTHOP)
		header = (struct rtmsg){ .rtm_family = AF_UNSPEC };
	begin_message(type, NLM_F_DUMP, &header, length);
	if (send(netlink, message, message->nlmsg_len, 0) < 0)
		err(1, "send");
	answers = read_answers();
	if (answers < expected)
		errx(1, "the dump has %zu of %zu", answers, expected);
}

static void look_up(uint32_t number)
{
	struct rtmsg header = { .rtm_family = AF_INET, .rtm_dst_len = 32 };

	begin_message(RTM_GETROUTE, 0, &header, sizeof(header));
	add_number(RTA_DST, htonl(FIRST_DESTINATION + number));
	if (send(netlink, message, message->nlmsg_len, 0) < 0)
		err(1, "send");
	if (recv(netlink, answer, sizeof(answer), 0) < 0)
		err(1, "recv");
	if (((struct nlmsghdr *)answer)->nlmsg_type != RTM_NEWROUTE)
		errx(1, "no route for number %u", number);
}

/* As nexthops come and go: each change gives two of them each other's way. */
static void look_up_under_churn(uint32_t nexthops, uint32_t routes, uint32_t lookups)
{
	uint32_t place = 0, changed;

	for (uint32_t i = 0; i < lookups; i++) {
		place = (place + 2654435761u) % routes;
		look_up(place);
		if (i % LOOKUPS_PER_CHANGE)
			continue;
		changed = i / LOOKUPS_PER_CHANGE % nexthops;
		if (with_objects)
			change_nexthop(changed, (changed + 1) % nexthops, NLM_F_REPLACE);
		else
			change_route(RTM_NEWROUTE, changed, (changed + 1) % nexthops,
				     NLM_F_CREATE | NLM_F_REPLACE);
		flush();
	}
}

static void delete_nexthops(uint32_t nexthops)
{
	struct nhmsg header = { .nh_family = AF_UNSPEC };

	for (uint32_t i = 0; i < nexthops; i++) {
		begin_message(RTM_DELNEXTHOP, 0, &header, sizeof(header));
		add_number(NHA_ID, i + 1);
		end_message();
	}
	flush();
}

static long memory(void)
{
	FILE *file = fopen("/proc/meminfo", "r");
	char line[128];
	long sum = 0, value;

	if (!file)
		err(1, "/proc/meminfo");
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "Slab: %ld", &value) == 1 ||
		    sscanf(line, "Percpu: %ld", &value) == 1)
			sum += value;
	fclose(file);
	return sum * 1024;
}

static void report(const char *what, uint64_t *begin)
{
	uint64_t now = counter();

	printf("%s %llu\n", what, (unsigned long long)(now - *begin));
	fflush(stdout);
	*begin = counter();
}

int main(int argc, char **argv)
{
	uint32_t nexthops, routes, lookups;
	long before, between;
	uint64_t begin;

	if (argc != 6)
		errx(1, "usage: bench_scale KIND NEXTHOPS ROUTES LOOKUPS DEVICE");
	with_objects = strncmp(argv[1], "route-", 6);
	if (!with_objects)
		argv[1] += 6;
	kind = !strcmp(argv[1], "lladdr") ? LLADDR : !strcmp(argv[1], "via4") ? VIA4 :
	       !strcmp(argv[1], "both") ? BOTH : GATEWAY;
	nexthops = atoi(argv[2]);
	routes = atoi(argv[3]);
	lookups = atoi(argv[4]);
	device = if_nametoindex(argv[5]);
	if (!nexthops || !routes || !lookups || !device)
		errx(1, "wrong number, or no such device");
	netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	if (netlink < 0)
		err(1, "socket");
	batched = 1 << 20;
	setsockopt(netlink, SOL_SOCKET, SO_RCVBUFFORCE, &batched, sizeof(batched));
	batched = 0;

	before = memory();
	begin = counter();
	if (with_objects) {
		for (uint32_t i = 0; i < nexthops; i++)
			change_nexthop(i, i, NLM_F_EXCL);
		flush();
		report("load-nexthops", &begin);
	}
	between = memory();
	begin = counter();
	for (uint32_t i = 0; i < routes; i++)
		change_route(RTM_NEWROUTE, i, i % nexthops, NLM_F_CREATE | NLM_F_EXCL);
	flush();
	report("load-routes", &begin);
	printf("memory-nexthops %ld\nmemory-routes %ld\n", between - before,
	       memory() - between);
	begin = counter();
	if (with_objects) {
		dump(RTM_GETNEXTHOP, nexthops);
		report("dump-nexthops", &begin);
	}
	dump(RTM_GETROUTE, routes);
	report("dump-routes", &begin);
	look_up_under_churn(nexthops, routes, lookups);
	report("lookup-churn", &begin);
	for (uint32_t i = 0; i < routes; i++)
		change_route(RTM_DELROUTE, i, i % nexthops, 0);
	flush();
	report("delete-routes", &begin);
	if (with_objects) {
		delete_nexthops(nexthops);
		report("delete-nexthops", &begin);
	}
	return 0;
}
