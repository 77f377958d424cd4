require 'minitest/autorun'
require 'change'

class TestChange < Minitest::Test
  def test_few_coins
    assert_equal [50, 20, 20, 5, 2, 2], Change.of(99)
  end

  def test_nothing
    assert_empty Change.of(0)
  end

  def test_debt
    assert_raises(ArgumentError) { Change.of(-1) }
  end
end
