module Data.Rot13 (rot13) where

import Data.Char (chr, isAsciiLower, isAsciiUpper, ord)

-- | Each letter becomes the one thirteen places on.
rot13 :: String -> String
rot13 = map turn
  where
    turn c
      | isAsciiLower c = from 'a' c
      | isAsciiUpper c = from 'A' c
      | otherwise = c
    from a c = chr (ord a + (ord c - ord a + 13) `mod` 26)
