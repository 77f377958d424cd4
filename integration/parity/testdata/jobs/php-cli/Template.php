<?php
declare(strict_types=1);

/** Fills in {{ names }}, and escapes what it fills in. */
final class Template
{
    public function __construct(private string $text) {}

    public function fill(array $values): string
    {
        return preg_replace_callback('/{{\s*(\w+)\s*}}/', function (array $m) use ($values): string {
            return htmlspecialchars((string) ($values[$m[1]] ?? throw new OutOfBoundsException($m[1])));
        }, $this->text);
    }
}
