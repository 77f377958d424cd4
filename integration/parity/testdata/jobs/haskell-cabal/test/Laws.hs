module Main (main) where

import Control.Monad (unless)
import System.Exit (exitFailure)

import Data.Rot13 (rot13)

main :: IO ()
main = do
  let texts = ["", "Hello", ['a' .. 'z'], "1234 ünï"]
  unless (all (\t -> rot13 (rot13 t) == t) texts && rot13 "Hello" == "Uryyb") exitFailure
