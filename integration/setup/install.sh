#!/usr/bin/env bash
# install.sh BIN TOOLS: install Hallmark below $DESTDIR (default: this machine).
# BIN holds our programs, TOOLS containerd and runc. Configuration that is there
# already stays as it is.
set -euo pipefail

bin=$1
tools=$2
root=${DESTDIR:-}

install -D -m 0755 -t "$root/usr/bin" "$bin"/hallmark "$bin"/hallmark-sandboxd "$bin"/hallmark-attestd \
	"$bin"/hallmark-pkcs11 "$bin"/hallmark-kms
for service in awskms azurekms gcpkms hashivault; do
	ln -sf hallmark-kms "$root/usr/bin/sigstore-kms-$service"
done
install -D -m 0755 -t "$root/usr/lib/hallmark" "$bin"/hallmark-executor "$bin"/hallmark-init \
	"$tools"/containerd "$tools"/containerd-shim-runc-v2 "$tools"/runc
install -D -m 0644 -t "$root/usr/lib/systemd/system" cmd/hallmark-sandboxd/hallmark-sandboxd.service \
	cmd/hallmark-attestd/hallmark-attestd.service
for document in LICENSE *.md docs/*.md attest/buildtype.* attest/policy/example.toml attest/verify/PEERS.md; do
	install -D -m 0644 "$document" "$root/usr/share/doc/hallmark/$document"
done
install -d -m 0755 "$root/etc/hallmark"
for daemon in sandboxd attestd; do
	file="$root/etc/hallmark/$daemon.toml"
	if [ ! -e "$file" ]; then
		"$bin/hallmark" config example "$daemon" >"$file"
		chmod 0644 "$file"
		echo "wrote $file: fill in the fields that have no default"
	fi
done
if [ -n "$root" ]; then
	exit 0 # a package makes the user itself
fi
if ! getent passwd hallmark-attestd >/dev/null; then
	useradd --system --home-dir /var/lib/hallmark-attestd --no-create-home --shell /usr/sbin/nologin hallmark-attestd
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
