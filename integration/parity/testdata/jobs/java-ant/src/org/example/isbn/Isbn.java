package org.example.isbn;

/** The number of a book, of ten or thirteen digits. */
public final class Isbn {
    private Isbn() {}

    public static boolean isValid(String text) {
        String digits = text.replace("-", "");
        if (digits.matches("[0-9]{9}[0-9X]")) {
            return weighted(digits, 10) % 11 == 0;
        }
        return digits.matches("97[89][0-9]{10}") && alternating(digits) % 10 == 0;
    }

    private static int weighted(String digits, int weight) {
        int sum = 0;
        for (char c : digits.toCharArray()) {
            sum += weight-- * (c == 'X' ? 10 : c - '0');
        }
        return sum;
    }

    private static int alternating(String digits) {
        int sum = 0;
        for (int i = 0; i < digits.length(); i++) {
            sum += (i % 2 == 0 ? 1 : 3) * (digits.charAt(i) - '0');
        }
        return sum;
    }
}
