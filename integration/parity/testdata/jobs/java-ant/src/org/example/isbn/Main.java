package org.example.isbn;

import java.util.Arrays;

public final class Main {
    public static void main(String... args) {
        Arrays.stream(args).forEach(a -> System.out.println(a + (Isbn.isValid(a) ? " is one" : " is none")));
        System.exit(Arrays.stream(args).allMatch(Isbn::isValid) ? 0 : 3);
    }
}
