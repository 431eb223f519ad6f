"""The questions of the quizzes, by lesson."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One answer, and what is right or wrong about it."""

    text: str
    why: str
    right: bool = False


@dataclass(frozen=True)
class Question:
    """A question with exactly one right choice."""

    text: str
    choices: tuple[Choice, ...]


QUESTIONS: dict[str, Question] = {
    "day1.mask": Question(
        "Why −∞ before the softmax, and not 0 after it?",
        (
            Choice(
                "It makes no difference.",
                "it does: zeroed weights no longer sum to 1, and hidden keys took their share.",
            ),
            Choice("−∞ is numerically safer.", "it is not: a row that is hidden entirely becomes NaN."),
            Choice(
                "So that hidden keys take no share.",
                "hidden keys take no share of the softmax, so the weights of the others still sum to 1.",
                True,
            ),
        ),
    ),
    "day1.scale": Question(
        "Scores are divided by √D. What happens without it when D is large?",
        (
            Choice("The softmax becomes uniform.", "the other way round: large scores make it one-hot."),
            Choice(
                "Nothing; the weights learn to be smaller.",
                "they could, but first steps pass almost no gradient through a saturated softmax.",
            ),
            Choice(
                "The softmax saturates and passes almost no gradient.",
                "products of two random vectors of length D have variance D.",
                True,
            ),
        ),
    ),
    "day2.norm": Question(
        "GPT-1 normalises after each residual sum, GPT-2 before each branch. What does pre-norm gain?",
        (
            Choice(
                "An unbroken path for the gradient from the loss to the embeddings.",
                "the stream itself is never normalised, so deep models train without a long warm-up.",
                True,
            ),
            Choice(
                "Fewer parameters.", "both have two layer norms a block; GPT-2 even has one more at the end."
            ),
            Choice(
                "Tokens no longer influence one another.",
                "neither norm mixes tokens: each works on one token's features.",
            ),
        ),
    ),
    "day2.mlp": Question(
        "What would a block be without the activation in its MLP?",
        (
            Choice(
                "Attention would take over its work.",
                "attention's output is linear in the values: it cannot bend them either.",
            ),
            Choice(
                "The MLP would be one linear map.",
                "two linear maps in a row are one, so the wide layer would be for nothing.",
                True,
            ),
            Choice(
                "The same, only slower.",
                "it would be weaker, not slower: the bend is what makes it more than a matrix.",
            ),
        ),
    ),
    "day3.tied": Question(
        "GPT-2's head shares the token embedding's weight. What follows?",
        (
            Choice(
                "Token embeddings get no gradient from the head.",
                "they get two: from where the token stands in the input and from predicting it.",
            ),
            Choice(
                "A token's row is both what it means as input and what the state must point at to predict it.",
                "one table serves both ends, and 38 of GPT-2 small's 124 million parameters are saved twice.",
                True,
            ),
            Choice(
                "The head needs no multiplication.",
                "it is still a product of the state with every row of the table.",
            ),
        ),
    ),
    "day3.init": Question(
        "Why do the last layers of the branches begin smaller by 1/√(2·n_layer)?",
        (
            Choice(
                "So that their gradients are smaller.",
                "gradients are not the reason: the sum on the stream is.",
            ),
            Choice(
                "Because 2·n_layer branches add up on the stream.",
                "variances add: scaled so, the stream begins with the same size at any depth.",
                True,
            ),
            Choice(
                "Because attention has 2 matrices.",
                "the 2 is for the two branches of a block, attention and MLP.",
            ),
        ),
    ),
    "day4.decay": Question(
        "Which parameters should not decay?",
        (
            Choice(
                "Biases and the gains of layer norms.",
                "they are few and one-dimensional; pulling a gain to 0 would switch features off.",
                True,
            ),
            Choice("The embeddings.", "GPT-2's recipe does decay them; what is exempt is one-dimensional."),
            Choice("The last layers of each branch.", "they are matrices as any other."),
        ),
    ),
    "day4.accumulation": Question(
        "Four micro-batches of 8 rows, accumulated, instead of one of 32. What must be done?",
        (
            Choice(
                "Nothing: gradients add up.",
                "they do, so the result would be four times too large: each loss is a mean over its own 8 rows.",
            ),
            Choice(
                "Divide each loss by 4.",
                "the sum of four quarters is the mean over all 32 rows (where each has the same number of tokens).",
                True,
            ),
            Choice(
                "Multiply the learning rate by 4.",
                "that would make it worse: the gradient is already four times too large.",
            ),
        ),
    ),
    "day5.cache": Question(
        "Why are keys and values cached, but not queries?",
        (
            Choice(
                "A position's query is used once, its key and value by every later position.",
                "the new token asks with its own query only.",
                True,
            ),
            Choice(
                "Queries are cheaper to compute.", "they cost the same; the reason is who needs them again."
            ),
            Choice("Queries depend on the future.", "nothing does: causal attention looks back only."),
        ),
    ),
    "day5.top_p": Question(
        "The likeliest token has probability 0.6 and p = 0.5. What does top-p keep?",
        (
            Choice(
                "Nothing: 0.6 is more than 0.5.",
                "the token that crosses p always stays, or there would be nothing to draw.",
            ),
            Choice(
                "That one token.", "it reaches p alone, so it is the nucleus; the draw is then certain.", True
            ),
            Choice("Half of the vocabulary.", "p is a share of probability, not of the number of tokens."),
        ),
    ),
    "day6.conv1d": Question(
        "attn.c_proj.weight of GPT-2 is (768, 768). How can you tell that it must be turned?",
        (
            Choice(
                "By its shape.",
                "a square matrix has the same shape both ways; forgetting it raises no error.",
            ),
            Choice(
                "It must not be turned: it is square.",
                "its values are turned all the same: Conv1D stores (in, out).",
            ),
            Choice(
                "Only by comparing outputs with the published model.",
                "which is why parity tests compare numbers, not shapes.",
                True,
            ),
        ),
    ),
    "day7.lens": Question(
        "The logit lens reads a layer's stream with the final norm and the head. What does it show?",
        (
            Choice(
                "What that layer alone has learned.",
                "the stream is the sum of all layers so far, not one layer's share.",
            ),
            Choice(
                "What the model would predict if the later layers added nothing.",
                "the later branches' sums are left out, everything else is the model's own.",
                True,
            ),
            Choice("The attention weights of that layer.", "those are another thing to record."),
        ),
    ),
    "day8.lm": Question(
        "Why does GPT-1 keep half of the language model's loss while fine-tuning?",
        (
            Choice("To save memory.", "it costs memory: logits for every position."),
            Choice(
                "It keeps what was learned in pre-training and steadies small data sets.",
                "the paper found that it helps most on larger data sets, and that small ones can do without.",
                True,
            ),
            Choice("Because the head has no gradient of its own.", "the task's loss trains the head."),
        ),
    ),
    "day9.zero": Question(
        "B begins as zeros and A does not. Why not both zero?",
        (
            Choice("Then the update would not be zero.", "it would be: but it would also stay so."),
            Choice("Both zero works too; it is only a custom.", "both gradients would be zero for ever."),
            Choice(
                "Then no gradient would reach either.",
                "dA is proportional to B and dB to A·x: with both zero, both stay zero for ever.",
                True,
            ),
        ),
    ),
    "day9.rank": Question(
        "r goes from 8 to 16 and alpha stays. What happens to the update's scale?",
        (
            Choice(
                "It halves.",
                "alpha / r. That is meant: so the learning rate need not change when r does.",
                True,
            ),
            Choice("It doubles.", "alpha / r: it halves."),
            Choice("It stays.", "only if alpha is doubled with r; rsLoRA divides by √r instead."),
        ),
    ),
    "day10.quantiles": Question(
        "Why are NF4's values closer together near zero?",
        (
            Choice("Small weights matter more.", "no such thing is assumed; there are simply more of them."),
            Choice(
                "Rounding errors are larger there.",
                "they are smaller there, because the values are closer together.",
            ),
            Choice(
                "Weights are nearly normal, and each code should be used about equally often.",
                "quantiles of the normal distribution are dense where the weights are.",
                True,
            ),
        ),
    ),
    "day10.outlier": Question(
        "One weight of a tensor is a hundred times larger than all others. What does it spoil?",
        (
            Choice(
                "The 63 others of its block.",
                "they are divided by its size and fall on the codes around zero.",
                True,
            ),
            Choice(
                "The whole tensor.",
                "it would with one scale for all; blocks of 64 keep the damage in one block.",
            ),
            Choice("Nothing: NF4 has a code for outliers.", "its largest code is the block's own absmax."),
        ),
    ),
    "day11.frozen": Question(
        "Gradients flow through NF4 weights in QLoRA. Where do they go?",
        (
            Choice("Into the codes.", "4-bit codes cannot move by a small step: they are frozen."),
            Choice(
                "Through the de-quantised weight to the input, and into A and B.",
                "the base only passes the gradient on.",
                True,
            ),
            Choice(
                "Nowhere: it is inference only.",
                "earlier layers' adapters need the gradient that passes through later base weights.",
            ),
        ),
    ),
    "day11.packing": Question(
        "Three short examples are packed into one row. What must change besides the ids?",
        (
            Choice(
                "Nothing: the causal mask keeps them apart.",
                "it hides the future only: the third example would read the first two.",
            ),
            Choice(
                "The loss is divided by three.", "it is the mean over the answers' tokens, however they lie."
            ),
            Choice(
                "Attention may not cross from one to another, and positions count anew in each.",
                "then each gives the loss that it gives alone.",
                True,
            ),
        ),
    ),
    "day11.merge": Question(
        "A trained QLoRA adapter is to be merged. Into what?",
        (
            Choice(
                "Back into the four bits.",
                "rounding the sum to sixteen values loses most of so small an update.",
            ),
            Choice(
                "Into the original 16-bit weights.",
                "the adapter learned around the rounding errors of the four bits: it does not know these weights.",
            ),
            Choice(
                "Into the de-quantised weights, kept in 16 or 32 bits.",
                "that is the model that was trained, to the last bits.",
                True,
            ),
        ),
    ),
    "day12.minus": Question(
        "L⁻ is the smaller of two losses: with nothing, and with the call but no result. Why the second?",
        (
            Choice("To save a forward pass.", "it costs one more."),
            Choice("Because the call may fail.", "failed calls have no result and are dropped before."),
            Choice(
                "Otherwise a call whose argument already holds the answer would count as helpful.",
                "a result must help, not the text of the call: without this term nearly every leaking call is kept.",
                True,
            ),
        ),
    ),
    "day12.weights": Question(
        "w_t falls from t = 0 and is 0 from t = 5 on. What does that do?",
        (
            Choice(
                "A call must help with what comes right after it.",
                "so calls are put where they are needed, and not at the beginning of the text.",
                True,
            ),
            Choice("It makes long texts cheaper.", "it does, but that is not what it is for."),
            Choice("It favours short calls.", "the weights count tokens of the text, not of the call."),
        ),
    ),
    "day13.disabled": Question(
        "Toolformer with calls disabled is measured beside Toolformer. What for?",
        (
            Choice(
                "To show what the training text alone gave.",
                "the same weights without results: the difference is what the tool adds.",
                True,
            ),
            Choice("To measure the speed of the tools.", "it is about accuracy."),
            Choice("Because some users have no tools.", "it is a control experiment."),
        ),
    ),
    "day13.mixed": Question(
        "Why is fine-tuning on C* mixed with as many plain documents?",
        (
            Choice("To have more data.", "there would be enough."),
            Choice(
                "Because the paper's C* has no calls.", "C* is C with calls, where they passed the filter."
            ),
            Choice(
                "So that it stays a language model, and calls only where a tool helps.",
                "else every document that it is trained on has a call, and perplexity on plain text rises.",
                True,
            ),
        ),
    ),
    "day14.shuffle": Question(
        "Reflections are shuffled between tasks and the gain is gone. What does that show?",
        (
            Choice(
                "That reflections are useless.",
                "the unshuffled ones helped: it is their content, for this very task, that does it.",
            ),
            Choice(
                "That the gain comes from what the reflections say, not from their being there.",
                "longer prompts or another draw would have survived the shuffle.",
                True,
            ),
            Choice("That the memory is too short.", "the memory is the same length in both."),
        ),
    ),
    "day14.weights": Question(
        "Between two trials, what changes in the agent?",
        (
            Choice(
                "Its prompt: the memory has one more reflection in it.",
                "verbal reinforcement: what the failure taught stands in words before the next trial.",
                True,
            ),
            Choice(
                "Its weights, by a small step of gradient descent.", "no weight changes: that is the point."
            ),
            Choice("Its temperature: it explores more.", "the actor draws as before; it only knows more."),
        ),
    ),
    "day14.shuffled": Question(
        "Why give each task the reflection on another one?",
        (
            Choice(
                "To show that the gain is in what the words say, not in their being there.",
                "prompts of the same form and length that say something false: if the gain stayed, it would come "
                "from something else.",
                True,
            ),
            Choice("To make the task harder and the plot prettier.", "it is a control, not a harder task."),
            Choice(
                "To test whether tasks can share what they learned.", "here they cannot: every house differs."
            ),
        ),
    ),
    "day15.half": Question(
        "A model has produced three of the four bytes of 🙂. What should a page show?",
        (
            Choice(
                "Three replacement signs.", "the next token may finish the character: hold the bytes back."
            ),
            Choice("The nearest whole emoji.", "bytes that are not there cannot be guessed."),
            Choice(
                "Nothing yet.",
                "an incremental decoder keeps unfinished bytes until the rest comes or the text ends.",
                True,
            ),
        ),
    ),
    "day16.first": Question(
        "Encoding applies merges in the order of their rank. Why not the longest token first?",
        (
            Choice(
                "Training made early merges before late ones; encoding must repeat them.",
                "only then does a word of the training text come out as it did in training.",
                True,
            ),
            Choice(
                "It would be slower.",
                "speed is not the reason: the ids would differ from those that the model was trained on.",
            ),
            Choice("Both give the same ids.", "they often do, and that makes the difference hard to see."),
        ),
    ),
    "day16.split": Question(
        "Why is text split by a pattern before merging?",
        (
            Choice(
                "Merges across words would fill the vocabulary with “ of the” and “dog.”, “dog!”, “dog?”.",
                "a merge never reaches across pieces; and each distinct piece needs encoding only once.",
                True,
            ),
            Choice(
                "Because bytes cannot hold spaces.",
                "they do: the space is part of the piece that follows it.",
            ),
            Choice("To remove punctuation.", "nothing is removed: decoding gives every byte back."),
        ),
    ),
    "day17.sharding": Question(
        "Two ranks draw from the same global batch, rank r takes rows r, r + 2, … What does that buy?",
        (
            Choice(
                "Half the memory for weights.",
                "data parallelism keeps a whole model on each rank; sharding weights is FSDP's work.",
            ),
            Choice(
                "The same training on any number of ranks.",
                "the global batch does not depend on the number of ranks, so loss curves can be compared, and runs resumed on another number.",
                True,
            ),
            Choice("Fewer steps.", "the number of steps is the same; each takes less time."),
        ),
    ),
}
