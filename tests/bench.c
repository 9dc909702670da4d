// SPDX-License-Identifier: GPL-2.0
/*
 * What scripts/bench measures with: Python is too noisy for an inner loop.
 *
 * bench counter
 *	how far the time stamp counter goes while a loop of known length runs:
 *	counted and real instructions
 * bench udp ADDRESS BATCHES [SOURCE]
 *	send batches of datagrams, each by one sendmmsg(); print the median of
 *	the batches: time stamp counter a packet.  With a SOURCE, both ports are
 *	PORT.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

#define PACKETS_PER_BATCH 64
#define WARM_UP_BATCHES 4
#define PAYLOAD 18	/* the shortest Ethernet frame */
/* A flow's hash, of IPv6, takes the ports in order, least byte first: no port that
 * a socket gets by itself is before this one.
 */
#define PORT 2304

static uint64_t counter(void)
{
	_mm_lfence();
	return __rdtsc();
}

static int ascending(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* A call that nobody makes: scripts/bench_profile.py waits for it. */
static void mark(void)
{
	syscall(SYS_syncfs, -1);
}

static void count_loop(void)
{
	const uint64_t rounds = 10000000;
	uint64_t left = rounds, begin, end;

	begin = counter();
	asm volatile("1: dec %0\n\tjnz 1b" : "+r"(left) : : "cc");
	end = counter();
	printf("%llu %llu\n", (unsigned long long)(end - begin),
	       (unsigned long long)(2 * rounds));
}

union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

/* Return the length. */
static socklen_t parse(const char *text, uint16_t port, union address *address)
{
	memset(address, 0, sizeof(*address));
	if (inet_pton(AF_INET6, text, &address->v6.sin6_addr) == 1) {
		address->v6.sin6_family = AF_INET6;
		address->v6.sin6_port = htons(port);
		return sizeof(address->v6);
	}
	if (inet_pton(AF_INET, text, &address->v4.sin_addr) != 1)
		errx(1, "not an address: %s", text);
	address->v4.sin_family = AF_INET;
	address->v4.sin_port = htons(port);
	return sizeof(address->v4);
}

static int udp_socket(int family, const char *source)
{
	int fd = socket(family, SOCK_DGRAM, 0), on = 1;
	union address address;
	socklen_t length;

	if (fd < 0)
		err(1, "socket");
	if (!source)
		return fd;
	length = parse(source, PORT, &address);
	/* For IPv6 the same bit */
	if (setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &on, sizeof(on)))
		err(1, "IP_TRANSPARENT");
	if (bind(fd, &address.any, length))
		err(1, "bind %s", source);
	return fd;
}

static void send_batch(int fd, struct mmsghdr *messages)
{
	int sent = sendmmsg(fd, messages, PACKETS_PER_BATCH, 0);

	if (sent < 0)
		err(1, "sendmmsg");
	if (sent != PACKETS_PER_BATCH)
		errx(1, "sendmmsg sent %d of %d", sent, PACKETS_PER_BATCH);
}

static void send_udp(const char *destination, size_t batches, const char *source)
{
	union address address;
	socklen_t length = parse(destination, PORT, &address);
	struct mmsghdr messages[PACKETS_PER_BATCH] = { 0 };
	static char payload[PAYLOAD];
	struct iovec data = { .iov_base = payload, .iov_len = sizeof(payload) };
	uint64_t *counts = calloc(batches, sizeof(*counts));
	int fd = udp_socket(address.any.sa_family, source);
	uint64_t begin;

	if (!counts)
		err(1, "calloc");
	for (int i = 0; i < PACKETS_PER_BATCH; i++) {
		messages[i].msg_hdr.msg_name = &address;
		messages[i].msg_hdr.msg_namelen = length;
		messages[i].msg_hdr.msg_iov = &data;
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	for (int i = 0; i < WARM_UP_BATCHES; i++)
		send_batch(fd, messages);
	if (batches > 1)
		mark();

	for (size_t i = 0; i < batches; i++) {
		begin = counter();
		send_batch(fd, messages);
		counts[i] = counter() - begin;
	}
	qsort(counts, batches, sizeof(*counts), ascending);
	printf("%.3f\n", (double)counts[batches / 2] / PACKETS_PER_BATCH);
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "counter"))
		count_loop();
	else if ((argc == 4 || argc == 5) && !strcmp(argv[1], "udp") && atoi(argv[3]) > 0)
		send_udp(argv[2], atoi(argv[3]), argv[4]);
	else
		errx(1, "usage: bench counter | udp ADDRESS BATCHES [SOURCE]");
	return 0;
}
