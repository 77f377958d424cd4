// get HOST PATH: fetch http://HOST/PATH with nothing but a C library, and print
// what came. Which library it is decides how names are resolved.
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
	if (argc != 3)
		return 2;
	struct addrinfo want = {.ai_socktype = SOCK_STREAM}, *found;
	int err = getaddrinfo(argv[1], "80", &want, &found);
	if (err) {
		fprintf(stderr, "%s: %s\n", argv[1], gai_strerror(err));
		return 1;
	}
	for (; found; found = found->ai_next) {
		int s = socket(found->ai_family, SOCK_STREAM, 0);
		if (s < 0 || connect(s, found->ai_addr, found->ai_addrlen)) {
			close(s);
			continue;
		}
		dprintf(s, "GET /%s HTTP/1.0\r\nHost: %s\r\n\r\n", argv[2], argv[1]);
		char buf[4096];
		for (ssize_t n; (n = read(s, buf, sizeof buf)) > 0;)
			if (write(1, buf, n) != n)
				return 1;
		return 0;
	}
	perror(argv[1]);
	return 1;
}
