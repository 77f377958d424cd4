package org.example.isbn;

import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import org.junit.Test;

public class IsbnTest {
    @Test
    public void thirteenDigits() {
        assertTrue(Isbn.isValid("978-3-16-148410-0"));
        assertFalse(Isbn.isValid("978-3-16-148410-1"));
    }

    @Test
    public void tenDigits() {
        assertTrue(Isbn.isValid("0-8044-2957-X"));
        assertFalse(Isbn.isValid("0-8044-2957-1"));
    }

    @Test
    public void nonsense() {
        assertFalse(Isbn.isValid("X"));
    }
}
