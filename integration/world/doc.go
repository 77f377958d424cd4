// Package world is a machine of its own, for tests and the demo, made of
// namespaces: a runner host with all of Hallmark's programs and the real GitLab
// Runner, and beyond its one network interface an internet with a GitLab, a
// registry, a package server and canaries.
//
//	func main() { os.Exit(world.Main(world.Options{}, func(w *world.World) int { … })) }
//
// [Main] makes what is missing of images, starts its program again inside, and
// calls the function there. Process 1 of the new pid namespace only reaps; when
// it goes, the kernel ends all that is left. Mounts, users, addresses and names
// exist inside alone, so that every program finds its defaults (/etc/hallmark,
// /run/hallmark, /var/lib/hallmark, /usr/lib/hallmark) and the machine outside
// sees none of it. It takes root, and no network.
//
// The internet is a second network namespace at the other end of a veth pair.
// Its servers run in this process: their listeners are opened inside.
//
//	192.0.2.10   gitlab.example.test      :443, and git over it
//	192.0.2.20   registry.example.test    :5000, plain HTTP
//	1.2.3.30     packages.example.test    :80, :443: a public address, as the border wants
//	1.2.3.50     canary.example.test      answers "CANARY" to whatever comes, and counts
//	2a00:db8:0:50::50                     the same over IPv6
package world
