use strict;
use warnings;
use Test::More tests => 3;
use_ok('Dice');
is(Dice::ways(6, 7), 6, 'seven is the likeliest');
is(Dice::ways(6, 13), 0, 'thirteen never comes');
