<?php
require 'Template.php';

assert((new Template('Hi {{ name }}'))->fill(['name' => 'A & B']) === 'Hi A &amp; B');
try {
    (new Template('{{ missing }}'))->fill([]);
    assert(false);
} catch (OutOfBoundsException $e) {
    assert($e->getMessage() === 'missing');
}
echo "2 tests\n";
