from tests.instruction_sets import isa as isa
