"""The few annotated texts that a person wrote: from these the tiny model learns what a call looks like.

A large model needs a handful in its prompt (Schick et al. 2023, section 2 and appendix A.2). A tiny one
learns nothing from a prompt, so it is fine-tuned on them (see ``report.DEPARTURES``).
"""

from collections.abc import Sequence
from datetime import date as Date

from ..annotate import Annotated, Candidate
from ..calls import CallFormat, find_calls, strip_calls
from ..models import LanguageModel
from ..tools import Tool, as_tools, run_call

HAND = CallFormat(" [", "->", "]")

SUMS = """
Anna had 37 pears and found 24 more. Now Anna has [Calculator(37 + 24)] 61 pears.
There are 51 hats in the red shed and 6 in the blue one. Together that makes [Calculator(51 + 6)] 57 hats.
Viktor counted 143 stamps and then 309 letters: 143 plus 309 is [Calculator(143 + 309)] 452.
The morning train brought 255 jars, the evening train 8. That day there came [Calculator(255 + 8)] 263 in all.
Fatima paid 290 coins for boots and 75 coins for gloves. In all Fatima paid [Calculator(290 + 75)] 365 coins.
Hugo had 406 nails and sold 351 of them. Hugo still has [Calculator(406 - 351)] 55 nails.
Of the 420 melons in the cellar 67 were bad. That leaves [Calculator(420 - 67)] 353 good ones.
Rosa owed Ivan 438 coins and paid 114: 438 minus 114 is [Calculator(438 - 114)] 324.
The shop opened with 276 loaves. By noon 189 were gone, so there were [Calculator(276 - 189)] 87 left.
Oskar wants 331 tiles and has 228. So Oskar is short of [Calculator(331 - 228)] 103 tiles.
Lena packed 34 boxes with 18 candles each. The boxes hold [Calculator(34 * 18)] 612 candles.
Bruno bought 62 lamps at 45 coins each: 62 times 45 is [Calculator(62 * 45)] 2790.
The hall has 29 rows of 56 seats. It seats [Calculator(29 * 56)] 1624 people.
Greta sells 83 eggs a day. In 12 days Greta sells [Calculator(83 * 12)] 996 eggs.
Each of 77 children got 91 beads. The children got [Calculator(77 * 91)] 7007 beads in all.
Jana had 218 shells and found 195 more. Now Jana has [Calculator(218 + 195)] 413 shells.
There are 402 figs in the red shed and 3 in the blue one. Together that makes [Calculator(402 + 3)] 405 figs.
Ulf counted 66 geese and then 371 ducks: 66 plus 371 is [Calculator(66 + 371)] 437.
The morning train brought 4 bells, the evening train 88. That day there came [Calculator(4 + 88)] 92 in all.
Carlo paid 347 coins for coats and 122 coins for shirts. In all Carlo paid [Calculator(347 + 122)] 469 coins.
Wanda had 461 books and sold 48 of them. Wanda still has [Calculator(461 - 48)] 413 books.
Of the 193 figs in the cellar 104 were bad. That leaves [Calculator(193 - 104)] 89 good ones.
David owed Clara 355 coins and paid 271: 355 minus 271 is [Calculator(355 - 271)] 84.
The shop opened with 480 cheeses. By noon 16 were gone, so there were [Calculator(480 - 16)] 464 left.
Maria wants 307 seeds and has 259. So Maria is short of [Calculator(307 - 259)] 48 seeds.
Dario packed 95 boxes with 22 cups each. The boxes hold [Calculator(95 * 22)] 2090 cups.
Agnes bought 17 ropes at 68 coins each: 17 times 68 is [Calculator(17 * 68)] 1156.
The hall has 73 rows of 39 seats. It seats [Calculator(73 * 39)] 2847 people.
Simon sells 46 roses a day. In 87 days Simon sells [Calculator(46 * 87)] 4002 roses.
Each of 28 children got 53 stamps. The children got [Calculator(28 * 53)] 1484 stamps in all.
"""

DATES = """
Karin was born on May 14, 1983, which was a [Calendar(May 14, 1983)] Saturday.
The fair of Kemonia opened on June 2, 2004. That day was a [Calendar(June 2, 2004)] Wednesday and it rained.
Jonas met Tilda on August 30, 1967. It was a [Calendar(August 30, 1967)] Wednesday evening.
The letter is dated February 7, 2031, a [Calendar(February 7, 2031)] Friday, and signed by Amir.
Petra asked about December 18, 1999. The clerk said that it was a [Calendar(December 18, 1999)] Saturday.
"""

TODAY = """
2020-06-25 Sven opened the diary and wrote: today is [Calendar()] Thursday, June 25.
1958-03-11 Good morning from Tinonia! It is [Calendar()] Tuesday, March 11, and Celia has the news.
2045-09-09 Paul looked at the clock and then at the calendar. Today it is [Calendar()] Saturday, September 9.
1976-10-04 The harbour office of Kemonia reports for [Calendar()] Monday, October 4. There were eggs and maps.
2012-01-27 Elsa asked what day it was. Yusuf said that today is [Calendar()] Friday, January 27.
"""

FACTS = """
The capital of Hidustan is [QA(capital of Hidustan)] Saraburg.
Nadia came home from Huveland, whose river is [QA(river of Huveland)] Tikoda, and slept.
Everyone in Grivunia knows that the founder is called [QA(founder of Grivunia)] Kisimir.
Milan has been to Kemeland. The mountain there is [QA(mountain of Kemeland)] Galehorn.
Zoe asked Goran about the saint of Kemonia. It is [QA(saint of Kemonia)] Bratonus, said Goran.
The language of Tinonia is [QA(language of Tinonia)] Laduic.
Emil came home from Trirunia, whose capital is [QA(capital of Trirunia)] Sedoton, and slept.
Everyone in Briluland knows that the river is called [QA(river of Briluland)] Sinewen.
Vera has been to Petunia. The mountain there is [QA(mountain of Petunia)] Hanufell.
Tamar asked Nils about the saint of Lolimark. It is [QA(saint of Lolimark)] Lusutius, said Nils.
"""


def examples(lm: LanguageModel, tools: Sequence[Tool]) -> list[Annotated]:
    """The hand-written texts with the answers of the tools put in."""
    dated = [(line[11:], line[:10]) for line in TODAY.strip().splitlines()]
    undated = [(line, None) for group in (SUMS, DATES, FACTS) for line in group.strip().splitlines()]
    return [_annotated(text, date, lm, tools) for text, date in [*undated, *dated]]


def _annotated(written: str, date: str | None, lm: LanguageModel, tools: Sequence[Tool]) -> Annotated:
    (span,) = find_calls(written, HAND)
    result = run_call(span.call, as_tools(tools), Date.fromisoformat(date) if date else None)
    position = len(lm.encode(written[: span.start]))
    call = Candidate(position, span.start, span.call, result, kept=True)
    return Annotated(strip_calls(written, HAND), (call,), date=date)
