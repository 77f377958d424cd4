package Dice;
use strict;
use warnings;

# The faces of a die.
sub faces { my ($n) = @_; return 1 .. $n }

# How many ways there are to throw a sum with two of them.
sub ways { my ($n, $sum) = @_; my $count = 0; for my $a (faces($n)) { $count += grep { $a + $_ == $sum } faces($n) } return $count }

1;
