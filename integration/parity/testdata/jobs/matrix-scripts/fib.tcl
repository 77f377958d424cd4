set a 0; set b 1
for {set i 0} {$i < [lindex $argv 0]} {incr i} { lassign [list $b [expr {$a + $b}]] a b }
puts $a
