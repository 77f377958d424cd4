# Change gives back money in as few coins as it can.
module Change
  COINS = [200, 100, 50, 20, 10, 5, 2, 1].freeze

  def self.of(cents)
    raise ArgumentError, 'less than nothing' if cents.negative?

    COINS.flat_map do |coin|
      count, cents = cents.divmod(coin)
      [coin] * count
    end
  end
end
