package images

// Names of the images that real-world jobs run in, by what they are for. Each
// stands on Helper, so that the Debian below is made, pulled and unpacked once.
const (
	C       = "gcc"     // make and autotools with it
	CPP     = "cpp"     // cmake, and what builds Debian packages
	Rust    = "rust"    // with cargo
	Python  = "python"  // with pytest and a client of Redis
	Ruby    = "ruby"    // with rake, minitest and asciidoctor
	Node    = "node"    // with npm
	PHP     = "php"     // its command line
	Lua     = "lua"     // and Tcl
	Erlang  = "erlang"  // its smallest system
	Pascal  = "pascal"  // Free Pascal
	Java    = "java"    // with ant and junit
	OCaml   = "ocaml"   // with its native compiler and dune
	Haskell = "haskell" // GHC, which brings Cabal's library along
	Tools   = "tools"   // shellcheck, hugo, sqlite, the client of PostgreSQL
)

// Jobs are the recipes of these images.
func Jobs() []Recipe {
	helper := Recipe{Name: Helper, Packages: helperPackages}
	on := func(base Recipe, name string, packages ...string) Recipe {
		return Recipe{Name: name, Base: &base, Packages: packages}
	}
	c := on(helper, C, "gcc", "libc6-dev", "make", "autoconf", "automake")
	return []Recipe{
		c, on(c, CPP, "g++", "cmake", "dpkg-dev", "debhelper"), on(c, Rust, "cargo"),
		on(helper, Python, "python3", "python3-pytest", "python3-setuptools", "python3-wheel", "python3-redis"),
		on(helper, Ruby, "ruby", "rake", "ruby-minitest", "asciidoctor"),
		on(helper, Node, "nodejs", "npm"),
		on(helper, PHP, "php-cli"),
		on(helper, Lua, "lua5.4", "tcl"),
		on(helper, Erlang, "erlang-base"),
		on(helper, Pascal, "fp-compiler"),
		on(helper, Java, "openjdk-17-jdk-headless", "ant", "ant-optional", "junit4"),
		on(c, OCaml, "ocaml-nox", "ocaml-dune"),
		on(c, Haskell, "ghc"),
		on(helper, Tools, "shellcheck", "hugo", "sqlite3", "postgresql-client"),
	}
}
