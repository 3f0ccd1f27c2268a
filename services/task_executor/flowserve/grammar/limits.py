"""What one grammar may cost, and all of them together."""

MIB = 1 << 20

# Before anything is compiled.
SOURCE_BYTES_MAX = MIB // 2
DEPTH_MAX = 64
PROPERTIES_MAX = 1000  # of one object; optional ones cost their square
ENUM_VALUES_MAX = 20_000
# Text that the grammar forces is looked at as a whole in every step.
FORCED_CHARACTERS_MAX = 10_000
REPETITIONS_MAX = 1_000_000

# While it is compiled, in a process of its own. Computing time and not the clock decides about a
# grammar, so that a busy host refuses none.
COMPILE_CPU_SECONDS = 0.08
COMPILE_MEMORY_BYTES = 512 * MIB  # beyond what the vocabulary takes
COMPILE_WALL_SECONDS = 5.0  # of a worker that neither computes nor answers
START_SECONDS = 20.0  # of a worker, vocabulary included; shorter than what is called a hang
INITIAL_LEXER_FUEL = 1_000_000
GRAMMAR_SYMBOLS_MAX = 200_000

# In every step. A matcher that goes beyond them fails its row.
STEP_LEXER_FUEL = 100_000
STEP_ITEMS_MAX = 30_000
LEXER_STATES_MAX = 20_000  # 1 to 2 KiB each
# A mask this slow holds up everybody; a row that needs several of them fails.
SLOW_MASK_SECONDS = 0.03
SLOW_MASKS_MAX = 8

# All together.
WAITING_MAX = 1024  # grammars that wait to be compiled
WAITING_OF_ONE_MAX = 128  # of them from one source
HELD_MAX = 1024  # different grammars of sequences that are here
KEPT_MAX = 256  # compiled ones, for those who ask next
KEPT_BYTES_MAX = 8 * MIB  # of their sources, which what is compiled grows with
FAULTS_KEPT_MAX = 256
TIMINGS_KEPT_MAX = 1024  # that nobody has asked for yet
